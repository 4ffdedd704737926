//! Which network namespaces a workload's processes are in, besides the agent's own.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::time::Instant;

use super::Place;
use crate::budget::Lines;
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
    /// Whether it is in more than it is served in; the others are not among these.
    pub(in crate::supervisor) is_crowded: bool,
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
    crowded: bool,
}

impl Spaces {
    /// It begins.
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            present: BTreeMap::new(),
            refused: BTreeSet::new(),
            fresh: 0,
            crowded: false,
        }
    }
}

/// What the looks before this one saw.
#[derive(Debug, Default)]
pub(super) struct Before {
    home: u64,
    by: HashMap<u32, BTreeSet<u64>>,
    lines: Lines<u32>,
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
    }

    /// The workload is served there, which the next look is to confirm.
    pub(super) fn know(&mut self, number: u32, inode: u64) {
        self.by.entry(number).or_default().insert(inode);
    }

    /// Notes where a process of the workload is. Its threads are taken to be where it is: a connection from elsewhere
    /// finds no listener.
    pub(super) fn see(&mut self, now: &mut Spaces, place: &Place, process: &HeldProcess) {
        if let Some(inode) = process.netns_inode() {
            self.see_at(now, place, inode, || process.netns().ok());
        }
    }

    /// The same of one that was met there a moment ago; `hold` tells where it is now.
    fn see_at(
        &mut self,
        now: &mut Spaces,
        place: &Place,
        met: u64,
        hold: impl FnOnce() -> Option<(u64, OwnedFd)>,
    ) {
        if self.is_settled(now, met) {
            return;
        }
        let Some((inode, file)) = hold() else {
            return;
        };
        // It may have gone elsewhere since, or home.
        if self.is_settled(now, inode) {
            return;
        }
        let known = self.by.get(&place.number);
        let is_known = known.is_some_and(|known| known.contains(&inode));
        let served = known.map_or(0, BTreeSet::len) + now.fresh;
        if !is_known && served >= place.spaces {
            now.refused.insert(inode);
            now.crowded = true;
            return;
        }
        match netns::may_enter(&file) {
            Ok(true) => {
                now.fresh += usize::from(!is_known);
                now.present.insert(inode, file);
            }
            Ok(false) => {
                now.refused.insert(inode);
            }
            Err(error) => {
                if let Some(left_out) = self.lines.next(&place.number) {
                    let workload = place.number;
                    tracing::warn!(%error, workload, left_out, "can't tell whose network namespace a process is in");
                }
                now.refused.insert(inode);
            }
        }
    }

    /// Whether nothing is to be done about this one, or not any more.
    fn is_settled(&self, now: &Spaces, inode: u64) -> bool {
        inode == self.home || now.present.contains_key(&inode) || now.refused.contains(&inode)
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
            is_crowded: now.crowded,
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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::PathBuf;

    use super::*;

    const NUMBER: u32 = 7;

    fn place(spaces: usize) -> Place {
        Place {
            number: NUMBER,
            id: 0,
            directory: PathBuf::new(),
            listen: Vec::new(),
            spaces,
        }
    }

    /// What a process holds of the namespace that this one is in, as if its number were that.
    fn held(inode: u64) -> Option<(u64, OwnedFd)> {
        Some((inode, File::open("/proc/self/ns/net").unwrap().into()))
    }

    #[test]
    fn who_was_met_elsewhere_and_has_gone_home_is_nowhere_else() {
        let mut before = Before::new();
        let home = before.home;
        let mut now = Spaces::new();
        before.see_at(&mut now, &place(64), 1, || held(home));
        assert!(now.present.is_empty() && now.fresh == 0);
        assert!(before.seen(NUMBER, now).is_none());
        assert!(elsewhere(&HeldProcess::open(std::process::id()).unwrap()).is_none());
    }

    #[test]
    fn who_was_met_elsewhere_and_has_moved_on_is_where_it_is_now() {
        let mut before = Before::new();
        // As far as the kernel says so, this process's namespace is one that may be entered.
        assert!(netns::may_enter(&held(0).unwrap().1).unwrap());
        before.know(NUMBER, 2);
        let mut now = Spaces::new();
        before.see_at(&mut now, &place(64), 1, || held(2));
        before.see_at(&mut now, &place(64), 1, || held(2));
        assert!(now.present.keys().eq(&[2]) && now.fresh == 0);
    }

    #[test]
    fn more_than_are_served_are_told_of_and_not_held() {
        let mut before = Before::new();
        let mut now = Spaces::new();
        for inode in 1..=3 {
            before.see_at(&mut now, &place(2), inode, || held(inode));
        }
        let seen = before.seen(NUMBER, now).unwrap();
        assert!(seen.present.keys().eq(&[1, 2]) && seen.is_crowded && seen.is_news);
    }
}
