//! Which addresses the resolvers gave for a name of late, whoever asked.
//!
//! Large services answer each question with other addresses. A client that was given one keeps it for a while, so that
//! a later answer without it proves nothing against it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::addr::HostName;

/// How long an address counts after it was last given. Longer than the longest TTL that the resolver keeps.
const KEPT: Duration = Duration::from_secs(2 * 3600);
/// Names at once; the one that was asked for the longest ago goes.
const NAMES: usize = 4096;
/// Addresses of one name at once; likewise.
const ADDRESSES: usize = 256;

/// The addresses given; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Given(Arc<Mutex<HashMap<HostName, Addresses>>>);

#[derive(Debug, Default)]
struct Addresses(HashMap<IpAddr, Instant>);

impl Given {
    /// Whether the name was given this address.
    pub(super) fn has(&self, host: &HostName, address: IpAddr) -> bool {
        self.has_at(host, address, Instant::now())
    }

    /// The name has been given these.
    pub(super) fn note(&self, host: &HostName, addresses: &[IpAddr]) {
        self.note_at(host, addresses, Instant::now());
    }

    fn has_at(&self, host: &HostName, address: IpAddr, now: Instant) -> bool {
        let names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let given = names
            .get(host)
            .and_then(|known| known.0.get(&address.to_canonical()));
        given.is_some_and(|when| now.saturating_duration_since(*when) < KEPT)
    }

    fn note_at(&self, host: &HostName, addresses: &[IpAddr], now: Instant) {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if names.len() >= NAMES
            && !names.contains_key(host)
            && let Some(oldest) = oldest(names.iter().map(|(name, known)| (name, known.newest())))
        {
            names.remove(&oldest);
        }
        let known = &mut names.entry(host.clone()).or_default().0;
        for address in addresses {
            let address = address.to_canonical();
            if known.len() >= ADDRESSES
                && !known.contains_key(&address)
                && let Some(oldest) = oldest(known.iter().map(|(address, when)| (address, Some(*when))))
            {
                known.remove(&oldest);
            }
            known.insert(address, now);
        }
    }
}

impl Addresses {
    fn newest(&self) -> Option<Instant> {
        self.0.values().max().copied()
    }
}

fn oldest<'a, T: Clone + 'a>(entries: impl Iterator<Item = (&'a T, Option<Instant>)>) -> Option<T> {
    entries.min_by_key(|(_, when)| *when).map(|(key, _)| key.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> HostName {
        HostName::parse(name).unwrap()
    }

    #[test]
    fn an_address_counts_for_its_name_alone_and_not_for_ever() {
        let (given, start) = (Given::default(), Instant::now());
        let (own, other) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        given.note_at(&host("a.example"), &[own], start);
        given.note_at(&host("b.example"), &[other], start);
        assert!(given.has_at(&host("a.example"), own, start));
        assert!(given.has_at(&host("a.example"), "::ffff:192.0.2.1".parse().unwrap(), start));
        assert!(!given.has_at(&host("a.example"), other, start));
        given.note_at(&host("a.example"), &[other], start + KEPT / 2);
        assert!(
            given.has_at(&host("a.example"), own, start + KEPT / 2),
            "an older answer stays"
        );
        assert!(!given.has_at(&host("a.example"), own, start + KEPT));
        assert!(given.has_at(&host("a.example"), other, start + KEPT));
    }

    #[test]
    fn names_and_addresses_are_bounded() {
        let (given, start) = (Given::default(), Instant::now());
        let address = |n: usize| IpAddr::from(u32::try_from(n).unwrap().to_be_bytes());
        for n in 0..=NAMES {
            let when = start + Duration::from_millis(n.try_into().unwrap());
            given.note_at(&host(&format!("n{n}.example")), &[address(1)], when);
        }
        let addresses: Vec<IpAddr> = (0..2 * ADDRESSES).map(address).collect();
        given.note_at(&host("n1.example"), &addresses, start);
        assert!(!given.has_at(&host("n0.example"), address(1), start));
        assert!(given.has_at(&host("n2.example"), address(1), start));
        let names = given.0.lock().unwrap();
        assert_eq!(names.len(), NAMES);
        assert_eq!(names.get(&host("n1.example")).unwrap().0.len(), ADDRESSES);
    }
}
