//! Which addresses the resolvers gave for a name of late, whoever asked.
//!
//! Large services answer each question with other addresses. A client that was given one keeps it for a while, so that
//! a later answer without it proves nothing against it.
//!
//! What is remembered is each workload's own: one that asks for ever so many names below a wildcard forgets what it
//! was given itself, and nothing of another's.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;

use crate::addr::HostName;
use crate::identity::WorkloadName;

/// How long an address counts after it was last given. Longer than the longest TTL that the resolver keeps.
const KEPT: Duration = Duration::from_secs(2 * 3600);
/// Addresses of all names that one workload was given; the one that was given the longest ago goes. They take 0.7 MB, 1.7 MB
/// if each is of another name and those are as long as names can be.
const ADDRESSES: NonZeroUsize = NonZeroUsize::MIN.saturating_add(4095);

/// The addresses given; clones share them.
#[derive(Clone, Default)]
pub struct Given(Arc<Mutex<HashMap<WorkloadName, Own>>>);

/// What one workload was given, and when: in the order of that, since looking for something changes nothing.
type Own = LruCache<(HostName, IpAddr), Instant>;

impl Given {
    /// Forgets what counts no more.
    pub fn sweep(&self) {
        self.sweep_at(Instant::now());
    }

    /// Whether anybody was given this address for the name; most often it is `workload` itself that was.
    pub(super) fn has(&self, workload: &WorkloadName, host: &HostName, address: IpAddr) -> bool {
        self.has_at(workload, host, address, Instant::now())
    }

    /// The workload has been given these for the name.
    pub(super) fn note(&self, workload: &WorkloadName, host: &HostName, addresses: &[IpAddr]) {
        self.note_at(workload, host, addresses, Instant::now());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<WorkloadName, Own>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_at(&self, workload: &WorkloadName, host: &HostName, address: IpAddr, now: Instant) -> bool {
        let key = (host.clone(), address.to_canonical());
        let given = self.lock();
        let own = given.get(workload);
        own.into_iter()
            .chain(given.values())
            .filter_map(|own| own.peek(&key))
            .any(|when| counts(*when, now))
    }

    fn note_at(&self, workload: &WorkloadName, host: &HostName, addresses: &[IpAddr], now: Instant) {
        let mut given = self.lock();
        let own = given
            .entry(workload.clone())
            // `new` would take room for all at once.
            .or_insert_with(|| LruCache::sparse(ADDRESSES));
        for address in addresses {
            own.put((host.clone(), address.to_canonical()), now);
        }
    }

    fn sweep_at(&self, now: Instant) {
        self.lock().retain(|_, own| {
            while own.peek_lru().is_some_and(|(_, when)| !counts(*when, now)) {
                own.pop_lru();
            }
            !own.is_empty()
        });
    }
}

fn counts(given: Instant, now: Instant) -> bool {
    now.saturating_duration_since(given) < KEPT
}

impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Given(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> HostName {
        HostName::parse(name).unwrap()
    }

    fn workload(name: &str) -> WorkloadName {
        WorkloadName::parse(name).unwrap()
    }

    fn address(n: usize) -> IpAddr {
        IpAddr::from(u32::try_from(n).unwrap().to_be_bytes())
    }

    #[test]
    fn an_address_counts_for_its_name_alone_and_not_for_ever() {
        let (given, start, asker) = (Given::default(), Instant::now(), workload("a"));
        let (own, other) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        given.note_at(&asker, &host("a.example"), &[own], start);
        given.note_at(&asker, &host("b.example"), &[other], start);
        assert!(given.has_at(&asker, &host("a.example"), own, start));
        assert!(given.has_at(
            &asker,
            &host("a.example"),
            "::ffff:192.0.2.1".parse().unwrap(),
            start
        ));
        assert!(!given.has_at(&asker, &host("a.example"), other, start));
        given.note_at(&asker, &host("a.example"), &[other], start + KEPT / 2);
        assert!(
            given.has_at(&asker, &host("a.example"), own, start + KEPT / 2),
            "an older answer stays"
        );
        assert!(!given.has_at(&asker, &host("a.example"), own, start + KEPT));
        assert!(given.has_at(&asker, &host("a.example"), other, start + KEPT));
    }

    #[test]
    fn who_asks_for_ever_so_many_names_forgets_its_own_alone() {
        let (given, start) = (Given::default(), Instant::now());
        let (asker, greedy, modest) = (workload("asker"), workload("greedy"), workload("modest"));
        given.note_at(&modest, &host("api.example"), &[address(7)], start);
        for n in 0..3 * ADDRESSES.get() {
            given.note_at(
                &greedy,
                &host(&format!("n{n}.wild.example")),
                &[address(1)],
                start,
            );
        }
        assert!(given.has_at(&asker, &host("api.example"), address(7), start));
        assert!(!given.has_at(&asker, &host("n0.wild.example"), address(1), start));
        let last = 3 * ADDRESSES.get() - 1;
        assert!(given.has_at(&asker, &host(&format!("n{last}.wild.example")), address(1), start));
        assert_eq!(given.lock()[&greedy].len(), ADDRESSES.get());
    }

    #[test]
    fn a_name_that_has_ever_so_many_addresses_takes_none_from_who_was_given_one_before() {
        let (given, start, asker) = (Given::default(), Instant::now(), workload("asker"));
        given.note_at(&workload("modest"), &host("api.example"), &[address(0)], start);
        for n in 0..3 * ADDRESSES.get() {
            given.note_at(
                &workload("greedy"),
                &host("api.example"),
                &[address(n + 1)],
                start,
            );
        }
        assert!(given.has_at(&asker, &host("api.example"), address(0), start));
        assert!(!given.has_at(&asker, &host("api.example"), address(1), start));
    }

    #[test]
    fn what_is_given_again_or_looked_for_is_as_old_as_it_was_last_given() {
        let (given, start, asker) = (Given::default(), Instant::now(), workload("a"));
        let note = |n| given.note_at(&asker, &host("a.example"), &[address(n)], start);
        (0..ADDRESSES.get()).for_each(note);
        note(0);
        assert!(given.has_at(&asker, &host("a.example"), address(1), start));
        note(ADDRESSES.get());
        assert!(given.has_at(&asker, &host("a.example"), address(0), start));
        assert!(!given.has_at(&asker, &host("a.example"), address(1), start));
    }

    #[test]
    fn what_counts_no_more_takes_no_room() {
        let (given, start) = (Given::default(), Instant::now());
        given.note_at(&workload("a"), &host("a.example"), &[address(1)], start);
        given.note_at(&workload("b"), &host("a.example"), &[address(1)], start);
        given.note_at(
            &workload("b"),
            &host("a.example"),
            &[address(2)],
            start + KEPT / 2,
        );
        given.sweep_at(start + KEPT / 2);
        assert_eq!(given.lock().len(), 2);
        given.sweep_at(start + KEPT);
        assert_eq!(given.lock().len(), 1);
        assert_eq!(given.lock()[&workload("b")].len(), 1);
    }
}
