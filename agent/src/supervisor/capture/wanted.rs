//! Network namespaces that workloads are in and not served in yet: when to try to enter which.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crate::budget::{Budgets, Rate};
use crate::supervisor::foreign::Seen;

/// Namespaces that are entered in one turn of the supervisor's.
const AT_ONCE: usize = 16;
/// Tries that one workload can cause in a time: a host's containers that start together, and few after that.
const TRIES: Rate = Rate {
    burst: 64,
    per_second: 20,
};
/// Before the next try of a workload that has caused too many.
const SPENT_PAUSE: Duration = Duration::from_millis(100);
/// After the first failure: a container's loopback device is up a moment later.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// After many.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// All of them.
#[derive(Debug)]
pub(super) struct Wanted {
    /// By workload number and inode.
    by: BTreeMap<(u32, u64), Entrance>,
    tries: Budgets<u32>,
}

/// A namespace to enter.
#[derive(Debug)]
pub(super) struct Entrance {
    /// It, held.
    pub(super) file: OwnedFd,
    /// When, and what is known of tries before.
    pub(super) patience: Patience,
}

/// When to try, and for how long to wait after a failure.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    since: Instant,
    due: Instant,
    pause: Duration,
}

impl Patience {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            due: now,
            pause: FIRST_PAUSE,
        }
    }

    /// Whether no try has failed yet.
    pub(super) fn is_fresh(self) -> bool {
        self.pause == FIRST_PAUSE
    }

    fn after_failure(self, now: Instant) -> Self {
        Self {
            due: now + self.pause,
            pause: (self.pause * 2).min(LONGEST_PAUSE),
            ..self
        }
    }
}

impl Wanted {
    /// None.
    pub(super) fn new() -> Self {
        Self {
            by: BTreeMap::new(),
            tries: Budgets::new(TRIES),
        }
    }

    /// Notes where a workload is and not served, and where it is no more. Of what was met since the look began, the look
    /// knows nothing.
    pub(super) fn see(&mut self, seen: Seen, is_served: impl Fn(u64) -> bool) {
        let number = seen.number;
        self.by.retain(|(of, inode), one| {
            *of != number || seen.present.contains_key(inode) || one.patience.since > seen.began
        });
        for (inode, file) in seen.present {
            if !is_served(inode) {
                let patience = Patience::new(Instant::now());
                let entrance = Entrance { file, patience };
                self.by.entry((number, inode)).or_insert(entrance);
            }
        }
    }

    /// Notes one place, to be entered at once; false if the workload wants as many as it has `room` for already.
    pub(super) fn meet(&mut self, number: u32, inode: u64, file: OwnedFd, room: usize) -> bool {
        let now = Instant::now();
        if let Some(one) = self.by.get_mut(&(number, inode)) {
            one.patience.due = one.patience.due.min(now);
            return true;
        }
        let has_room = self.by.range((number, 0)..=(number, u64::MAX)).count() < room;
        if has_room {
            let patience = Patience::new(now);
            self.by.insert((number, inode), Entrance { file, patience });
        }
        has_room
    }

    /// What to enter now: a few at a time, who has waited longest first.
    pub(super) fn due(&self) -> Vec<(u32, u64)> {
        let now = Instant::now();
        let due = self.by.iter().map(|(key, one)| (one.patience.due, *key));
        let mut due: Vec<_> = due.filter(|(due, _)| *due <= now).collect();
        due.sort_unstable();
        due.into_iter().take(AT_ONCE).map(|(_, key)| key).collect()
    }

    /// Takes one out, to enter it; `None` if the workload has caused too many tries.
    pub(super) fn take(&mut self, number: u32, inode: u64) -> Option<Entrance> {
        let one = self.by.get_mut(&(number, inode))?;
        if self.tries.spend(&number, 1) {
            return self.by.remove(&(number, inode));
        }
        one.patience.due = Instant::now() + SPENT_PAUSE;
        None
    }

    /// Puts one back that could not be entered.
    pub(super) fn again(&mut self, number: u32, inode: u64, file: OwnedFd, patience: Patience) {
        let patience = patience.after_failure(Instant::now());
        self.by.insert((number, inode), Entrance { file, patience });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: usize = 64;

    fn file() -> OwnedFd {
        std::fs::File::open("/proc/self/ns/net").unwrap().into()
    }

    fn seen(began: Instant, present: BTreeMap<u64, OwnedFd>) -> Seen {
        Seen {
            number: 1,
            began,
            is_news: false,
            present,
        }
    }

    #[test]
    fn what_cant_be_entered_is_tried_soon_then_ever_later_and_at_least_every_five_seconds() {
        let mut patience = Patience::new(Instant::now());
        assert!(patience.is_fresh() && patience.due == patience.since);
        let mut waits = Vec::new();
        for _ in 0..10 {
            let failed = patience.due;
            patience = patience.after_failure(failed);
            waits.push(patience.due - failed);
        }
        let expected = [20, 40, 80, 160, 320, 640, 1280, 2560, 5000, 5000];
        assert_eq!(waits, expected.map(Duration::from_millis));
        assert!(!patience.is_fresh());
    }

    #[test]
    fn a_failure_waits_and_a_call_that_is_refused_brings_the_next_try_forward() {
        let mut wanted = Wanted::new();
        assert!(wanted.meet(1, 10, file(), ROOM));
        assert_eq!(wanted.due(), [(1, 10)]);
        let mut one = wanted.take(1, 10).unwrap();
        one.patience.pause = LONGEST_PAUSE;
        wanted.again(1, 10, one.file, one.patience);
        assert!(wanted.due().is_empty());
        assert!(wanted.meet(1, 10, file(), ROOM));
        assert_eq!(wanted.due(), [(1, 10)]);
    }

    #[test]
    fn a_workload_that_is_met_in_ever_more_namespaces_uses_up_its_own_room_and_tries_alone() {
        let mut wanted = Wanted::new();
        let kept = (0..1000).filter(|inode| wanted.meet(1, *inode, file(), ROOM));
        assert_eq!(kept.count(), ROOM);
        assert!(wanted.due().len() <= AT_ONCE);
        let burst = usize::try_from(TRIES.burst).unwrap();
        let tries = (0..10 * burst).filter(|_| {
            let one = wanted.take(1, 0);
            one.map(|one| wanted.again(1, 0, one.file, one.patience))
                .is_some()
        });
        assert!((burst..2 * burst).contains(&tries.count()));
        assert!(wanted.meet(2, 7, file(), ROOM) && wanted.take(2, 7).is_some());
    }

    #[test]
    fn a_look_forgets_what_it_did_not_see_but_not_what_was_met_after_it_began() {
        let mut wanted = Wanted::new();
        let before = Instant::now();
        wanted.meet(1, 10, file(), ROOM);
        wanted.meet(2, 10, file(), ROOM);
        wanted.see(seen(before, BTreeMap::new()), |_| false);
        assert_eq!(wanted.by.len(), 2);
        let present = BTreeMap::from([(11, file()), (12, file())]);
        wanted.see(seen(Instant::now(), present), |inode| inode == 12);
        let left: Vec<_> = wanted.by.keys().copied().collect();
        assert_eq!(left, [(1, 11), (2, 10)]);
    }
}
