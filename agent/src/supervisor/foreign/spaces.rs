//! Which network namespaces a workload's processes are in, besides the agent's own.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::time::Instant;

use super::Place;
use crate::ebpf::netns;
use crate::identity::process::HeldProcess;

/// Where a workload's processes were at one look.
#[derive(Debug)]
pub(in crate::supervisor) struct Seen {
    /// The workload's number.
    pub(in crate::supervisor) number: u32,
    /// Who came somewhere after this was not seen.
    pub(in crate::supervisor) began: Instant,
    /// Whether it is somewhere where it was not before.
    pub(in crate::supervisor) is_news: bool,
    /// The namespaces by inode, held: while one is held, its number is not given to another.
    pub(in crate::supervisor) present: BTreeMap<u64, OwnedFd>,
}

/// One look into a workload.
#[derive(Debug)]
pub(super) struct Spaces {
    began: Instant,
    present: BTreeMap<u64, OwnedFd>,
    /// Looked at already, and not to be served.
    refused: BTreeSet<u64>,
    fresh: usize,
}

impl Spaces {
    /// It begins.
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            present: BTreeMap::new(),
            refused: BTreeSet::new(),
            fresh: 0,
        }
    }
}

/// What the looks before this one saw.
#[derive(Debug, Default)]
pub(super) struct Before {
    home: u64,
    by: HashMap<u32, BTreeSet<u64>>,
    /// Workloads of which was said that they are in too many.
    told: BTreeSet<u32>,
}

impl Before {
    pub(super) fn new() -> Self {
        Self {
            home: home(),
            ..Self::default()
        }
    }

    pub(super) fn forget(&mut self, is_held: impl Fn(u32) -> bool) {
        self.by.retain(|number, _| is_held(*number));
        self.told.retain(|number| is_held(*number));
    }

    /// The workload is served there, which the next look is to confirm.
    pub(super) fn know(&mut self, number: u32, inode: u64) {
        self.by.entry(number).or_default().insert(inode);
    }

    /// Notes where a process of the workload is. Its threads are taken to be where it is: a connection from elsewhere
    /// finds no listener.
    pub(super) fn see(&mut self, now: &mut Spaces, place: &Place, process: &HeldProcess) {
        let number = place.number;
        let Some(inode) = process.netns_inode() else {
            return;
        };
        if inode == self.home || now.present.contains_key(&inode) || now.refused.contains(&inode) {
            return;
        }
        let known = self.by.get(&number);
        let is_known = known.is_some_and(|known| known.contains(&inode));
        let served = known.map_or(0, BTreeSet::len) + now.fresh;
        if !is_known && served >= place.spaces {
            now.refused.insert(inode);
            if self.told.insert(number) {
                tracing::warn!(
                    workload = number,
                    most = place.spaces,
                    "a workload is in more network namespaces than it is served in; the others get no listener"
                );
            }
            return;
        }
        // It may have gone home since.
        let Some((inode, file)) = process.netns().ok().filter(|(inode, _)| *inode != self.home) else {
            return;
        };
        match netns::may_enter(&file) {
            Ok(true) => {
                now.fresh += usize::from(!is_known);
                now.present.insert(inode, file);
            }
            Ok(false) => {
                now.refused.insert(inode);
            }
            Err(error) => {
                tracing::warn!(%error, pid = process.pid(), "can't tell whose network namespace a process is in");
                now.refused.insert(inode);
            }
        }
    }

    /// What there is to say after a look.
    pub(super) fn seen(&mut self, number: u32, now: Spaces) -> Option<Seen> {
        let inodes: BTreeSet<u64> = now.present.keys().copied().collect();
        let before = self.by.insert(number, inodes).unwrap_or_default();
        if now.present.is_empty() && before.is_empty() {
            return None;
        }
        Some(Seen {
            number,
            began: now.began,
            is_news: now.fresh > 0,
            present: now.present,
        })
    }
}

/// The namespace that this process is in, held, if its workload is to be served there: it is not the agent's own, and
/// none that anybody can make.
pub(in crate::supervisor) fn elsewhere(process: &HeldProcess) -> Option<(u64, OwnedFd)> {
    let (inode, file) = process.netns().ok()?;
    let is_served = inode != home() && netns::may_enter(&file).unwrap_or(false);
    is_served.then_some((inode, file))
}

/// The inode of the agent's own namespace; 0, which none has, if it can't be told.
fn home() -> u64 {
    fs::metadata("/proc/self/ns/net").map_or(0, |found| found.ino())
}
