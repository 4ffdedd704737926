//! Directories of pins that are as they were when nothing was missing in them: to look at the directory is enough then, and
//! with hundreds of workloads twice a second there are thousands of pins.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// File systems note the time of a change in steps of the kernel's tick, 10 ms at most: a directory that changed just now may
/// change again without a trace.
const SETTLED: Duration = Duration::from_secs(1);

/// By the id of the cgroup that the directory is for.
#[derive(Debug, Default)]
pub(super) struct Unchanged(RefCell<BTreeMap<u64, Stamp>>);

/// Tells a directory, and the state that it is in. Whatever is made, removed or renamed in it changes the time, which
/// nobody can set (inode(7), ctime); what is mounted in its place is another one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    changed: Duration,
}

impl Stamp {
    /// `None` if it can't be looked at. To be taken before what is in it.
    pub(super) fn of(dir: &Path) -> Option<Self> {
        let found = std::fs::symlink_metadata(dir).ok()?;
        let seconds = u64::try_from(found.ctime()).ok()?;
        let nanoseconds = u32::try_from(found.ctime_nsec()).ok()?;
        Some(Self {
            device: found.dev(),
            inode: found.ino(),
            changed: Duration::new(seconds, nanoseconds),
        })
    }

    fn is_settled(self, now: SystemTime) -> bool {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        now.checked_sub(self.changed).is_some_and(|age| age >= SETTLED)
    }
}

impl Unchanged {
    /// Whether nothing was missing when the directory was as it is now.
    pub(super) fn has(&self, cgroup: u64, stamp: Option<Stamp>) -> bool {
        stamp.is_some() && self.0.borrow().get(&cgroup) == stamp.as_ref()
    }

    /// Nothing is missing in the directory as it was at `stamp`, or something is.
    pub(super) fn note(&self, cgroup: u64, stamp: Option<Stamp>, complete: bool) {
        let mut known = self.0.borrow_mut();
        match stamp.filter(|stamp| complete && stamp.is_settled(SystemTime::now())) {
            Some(stamp) => known.insert(cgroup, stamp),
            None => known.remove(&cgroup),
        };
    }

    /// The cgroup is let go of.
    pub(super) fn forget(&self, cgroup: u64) {
        self.0.borrow_mut().remove(&cgroup);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aged(dir: &Path, by: Duration) -> Stamp {
        let stamp = Stamp::of(dir).unwrap();
        Stamp {
            changed: stamp.changed - by,
            ..stamp
        }
    }

    #[test]
    fn what_is_removed_or_put_in_its_place_changes_it() {
        let dir = tempfile::tempdir().unwrap();
        let links = dir.path().join("links");
        std::fs::create_dir(&links).unwrap();
        std::fs::write(links.join("pin"), "").unwrap();
        let before = Stamp::of(&links);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(Stamp::of(&links), before);
        std::fs::remove_file(links.join("pin")).unwrap();
        let after = Stamp::of(&links);
        assert_ne!(after, before);
        std::fs::rename(&links, dir.path().join("away")).unwrap();
        std::fs::create_dir(&links).unwrap();
        assert_ne!(Stamp::of(&links), after);
        std::fs::remove_dir(&links).unwrap();
        assert_eq!(Stamp::of(&links), None);
    }

    #[test]
    fn only_what_changed_a_while_ago_is_taken_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let unchanged = Unchanged::default();
        for (age, complete, taken) in [(0, true, false), (2, true, true), (2, false, false)] {
            let stamp = Some(aged(dir.path(), Duration::from_secs(age)));
            unchanged.note(1, stamp, complete);
            assert_eq!(unchanged.has(1, stamp), taken, "{age} s, {complete}");
            assert!(!unchanged.has(2, stamp));
        }
        assert!(!unchanged.has(1, None));
    }
}
