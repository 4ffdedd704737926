//! Sockets in other network namespaces from one run to the next: what the service manager keeps of them, and what a
//! start takes back.
//!
//! A stored socket keeps its namespace alive, so what a start has taken back goes at the first look that finds no process
//! of the workload in there, as in any other case; what it has not, goes at once.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use super::sockets::{Part, Sockets};
use super::spaces::Served;
use super::{Capture, Error};
use crate::ebpf::Netns;
use crate::ebpf::netns;
use crate::identity::WorkloadName;
use crate::systemd::store::Room;

impl Capture {
    /// Serves a workload where the last run did, if what it left for a namespace is whole and what it is called; gives
    /// the namespaces' cookies.
    ///
    /// # Errors
    /// If the kernel's maps can't be written.
    pub(super) fn take_back(&mut self, name: &WorkloadName, number: u32) -> Result<Vec<u64>, Error> {
        let left: BTreeSet<u64> = self
            .store
            .left()
            .filter_map(|left| space_of(left, name))
            .collect();
        let mut cookies = Vec::new();
        for cookie in left {
            match self.space_left(name, number, cookie) {
                Ok((inode, served)) => {
                    served.sockets.mark(&mut self.programs, number)?;
                    self.serve(number, inode, served);
                    cookies.push(cookie);
                }
                Err(error) => {
                    tracing::warn!(%error, workload = %name, netns = cookie, "sockets of the last run in a network namespace are not what they were; others are made when a process is seen there");
                    self.forget_space(name, cookie);
                }
            }
        }
        Ok(cookies)
    }

    /// What the last run left for one namespace: all of it is taken, and lost if any of it is wrong.
    fn space_left(&mut self, name: &WorkloadName, number: u32, cookie: u64) -> io::Result<(u64, Served)> {
        let store = &mut self.store;
        let taken = Part::ALL.map(|part| (part, store.take(&part.name_in(name, cookie))));
        let taken: Vec<(Part, OwnedFd)> = taken
            .into_iter()
            .filter_map(|(part, socket)| Some((part, socket?)))
            .collect();
        for (part, socket) in &taken {
            let is_right = part.fits(socket)?
                && self.programs.listener_mark(socket.as_fd()) == Some(number)
                && netns::cookie_of(socket.as_fd())? == cookie;
            if !is_right {
                return Err(io::Error::other(format!("{part:?} is another socket")));
            }
        }
        let sockets = Sockets::of(taken)?;
        if !sockets.is_whole() {
            return Err(io::Error::other("some of them are missing"));
        }
        let (_, one) = sockets.parts().next().ok_or(io::ErrorKind::NotFound)?;
        let netns = Netns::of_socket(one)?;
        if cookie == self.home || netns.cookie() != cookie || !netns.is_own()? {
            return Err(io::Error::other("the namespace is another one"));
        }
        let netns = Arc::new(netns);
        Ok((netns.inode()?, Served::new(netns, sockets)))
    }

    /// Gives the sockets in a namespace to the service manager, if the workload's share has room for them all.
    pub(super) fn keep_space(&mut self, name: &WorkloadName, served: &Served) {
        let cookie = served.netns.cookie();
        let names: Vec<String> = served
            .sockets
            .parts()
            .map(|(part, _)| part.name_in(name, cookie))
            .collect();
        let room = self.store.share(self.held.len()).beside(self.kept_of(name));
        let needed = Room::of(names.iter().map(String::as_str));
        if room.is_none_or(|room| room.beside(needed).is_none()) {
            tracing::debug!(workload = %name, netns = cookie, "the workload's share of what the service manager keeps is used up: connections from this namespace are refused while the agent restarts");
            return;
        }
        for ((_, socket), stored) in served.sockets.parts().zip(&names) {
            self.store.keep(stored, socket);
        }
    }

    /// The service manager keeps nothing of this namespace any more.
    pub(super) fn forget_space(&mut self, name: &WorkloadName, cookie: u64) {
        for part in Part::ALL {
            let stored = part.name_in(name, cookie);
            if self.store.keeps(&stored) {
                self.store.forget(&stored);
            }
        }
    }

    /// Has the manager keep no more of each workload than a share of so many, so that there is room for all of them.
    pub(super) fn share_store(&mut self, workloads: usize) {
        let share = self.store.share(workloads);
        let names: Vec<(WorkloadName, u32)> = self
            .held
            .iter()
            .map(|(name, held)| (name.clone(), held.number))
            .collect();
        for (name, number) in names {
            for cookie in self.spaces.newest_first(number) {
                if share.beside(self.kept_of(&name)).is_some() {
                    break;
                }
                self.forget_space(&name, cookie);
            }
        }
    }

    fn kept_of(&self, name: &WorkloadName) -> Room {
        let own = format!("callgate-{name}-");
        self.store.used(|stored| {
            stored.strip_prefix(&own).is_some_and(|rest| {
                // Another workload's name may go on here.
                let part = rest.split('@').next().unwrap_or_default();
                Part::ALL.iter().any(|one| one.word() == part)
            })
        })
    }
}

/// The namespace's cookie in the name of one of this workload's sockets; `None` if it is no such name.
fn space_of(stored: &str, name: &WorkloadName) -> Option<u64> {
    let cookie = stored.rsplit_once('@')?.1.parse().ok()?;
    Part::ALL
        .iter()
        .any(|part| part.name_in(name, cookie) == stored)
        .then_some(cookie)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_workload_and_namespace_and_nothing_else_does() {
        let name = |text: &str| WorkloadName::parse(text).unwrap();
        let billing = name("billing");
        assert_eq!(
            space_of(&Part::Tcp6.name_in(&billing, 4711), &billing),
            Some(4711)
        );
        assert_eq!(space_of(&Part::Tcp6.name_in(&billing, 4711), &name("bill")), None);
        let odd = name("billing-tcp4");
        assert_eq!(space_of(&Part::Dns4.name_in(&odd, 1), &billing), None);
        for other in [
            "callgate-billing-tcp4",
            "callgate-billing-tcp4@",
            "callgate-billing-tcp4@01",
            "callgate-billing-udp4@1",
            "callgate-handover",
        ] {
            assert_eq!(space_of(other, &billing), None, "{other}");
        }
    }
}
