//! Network namespaces that workloads are in and not served in yet: when to try to enter which.

use std::collections::{BTreeMap, VecDeque};
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
/// After the first failure: a container's loopback device is up a moment later.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// After many.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Between two tries of the same, however often it is met: so one alone spends no more than comes back, and what the
/// workload can spend at once is there for its others.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);

/// All of them.
#[derive(Debug)]
pub(super) struct Wanted {
    /// By workload number and inode.
    by: BTreeMap<(u32, u64), Entrance>,
    tries: Budgets<u32>,
    /// The workload whose turn was last.
    last: u32,
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
    /// Not before, whatever happens.
    earliest: Instant,
    due: Instant,
    pause: Duration,
}

impl Patience {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            earliest: now,
            due: now,
            pause: FIRST_PAUSE,
        }
    }

    fn hurry(&mut self, now: Instant) {
        self.due = self.due.min(self.earliest.max(now));
    }

    /// Whether no try has failed yet.
    pub(super) fn is_fresh(self) -> bool {
        self.pause == FIRST_PAUSE
    }

    fn after_failure(self, now: Instant) -> Self {
        Self {
            earliest: now + SHORTEST_PAUSE.min(self.pause),
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
            last: 0,
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
            one.patience.hurry(now);
            return true;
        }
        let has_room = self.by.range((number, 0)..=(number, u64::MAX)).count() < room;
        if has_room {
            let patience = Patience::new(now);
            self.by.insert((number, inode), Entrance { file, patience });
        }
        has_room
    }

    /// Takes out what to enter now: a few of all workloads in turn, of each who has waited longest first, as many as it has
    /// `room` for and may try.
    pub(super) fn take_due(&mut self, room: impl Fn(u32) -> usize) -> Vec<((u32, u64), Entrance)> {
        let mut due = self.due(Instant::now());
        for (number, waiting) in &mut due {
            waiting.truncate(room(*number));
            // The last is taken first.
            waiting.reverse();
        }
        let mut taken = Vec::new();
        let mut turns: VecDeque<u32> = due.keys().copied().collect();
        // Who comes after the last: one that is always first would be the only one.
        turns.rotate_left(turns.iter().take_while(|number| **number <= self.last).count());
        while taken.len() < AT_ONCE
            && let Some(number) = turns.pop_front()
        {
            let Some(inode) = due.get_mut(&number).and_then(Vec::pop) else {
                continue;
            };
            if let Some(one) = self.spend(number, inode) {
                taken.push(((number, inode), one));
                self.last = number;
                turns.push_back(number);
            }
        }
        taken
    }

    /// The inodes by workload, who has waited longest first.
    fn due(&self, now: Instant) -> BTreeMap<u32, Vec<u64>> {
        let mut due: Vec<_> = self
            .by
            .iter()
            .filter(|(_, one)| one.patience.due <= now)
            .map(|((number, inode), one)| (one.patience.due, *number, *inode))
            .collect();
        due.sort_unstable();
        let mut by = BTreeMap::<u32, Vec<u64>>::new();
        for (_, number, inode) in due {
            by.entry(number).or_default().push(inode);
        }
        by
    }

    /// Workloads that want more than they have `room` for.
    pub(super) fn crowded(&self, room: impl Fn(u32) -> usize) -> Vec<u32> {
        let mut wanted = BTreeMap::<u32, usize>::new();
        for (number, _) in self.by.keys() {
            *wanted.entry(*number).or_default() += 1;
        }
        let crowded = wanted
            .into_iter()
            .filter(|(number, count)| *count > room(*number));
        crowded.map(|(number, _)| number).collect()
    }

    /// Takes one out that shall not wait for its turn; `None` if it has just been tried, or the workload has caused too many
    /// tries.
    pub(super) fn take(&mut self, number: u32, inode: u64) -> Option<Entrance> {
        let one = self.by.get(&(number, inode))?;
        if one.patience.due > Instant::now() {
            return None;
        }
        self.spend(number, inode)
    }

    fn spend(&mut self, number: u32, inode: u64) -> Option<Entrance> {
        if self.tries.spend(&number, 1) {
            return self.by.remove(&(number, inode));
        }
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
            is_crowded: false,
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

    fn keys(taken: Vec<((u32, u64), Entrance)>) -> Vec<(u32, u64)> {
        taken.into_iter().map(|(key, _)| key).collect()
    }

    #[test]
    fn a_failure_waits_and_a_call_that_is_refused_brings_the_next_try_forward_but_not_without_end() {
        let mut wanted = Wanted::new();
        assert!(wanted.meet(1, 10, file(), ROOM));
        let (_, mut one) = wanted.take_due(|_| ROOM).pop().unwrap();
        one.patience.pause = LONGEST_PAUSE;
        let failed = Instant::now();
        wanted.again(1, 10, one.file, one.patience);
        // As often as calls are refused.
        let mut met = 0;
        while failed.elapsed() < SHORTEST_PAUSE {
            met += 1;
            assert!(wanted.meet(1, 10, file(), ROOM));
            assert!(
                wanted.take(1, 10).is_none() && wanted.take_due(|_| ROOM).is_empty()
                    || failed.elapsed() >= SHORTEST_PAUSE
            );
        }
        assert!(met > 1);
        assert!(wanted.meet(1, 10, file(), ROOM));
        std::thread::sleep(SHORTEST_PAUSE);
        assert_eq!(keys(wanted.take_due(|_| ROOM)), [(1, 10)]);
    }

    #[test]
    fn one_that_is_met_at_every_moment_leaves_the_burst_to_its_workloads_others() {
        let (mut wanted, start) = (Wanted::new(), Instant::now());
        let mut tries = 0;
        while start.elapsed() < Duration::from_secs(1) {
            assert!(wanted.meet(1, 10, file(), ROOM));
            if let Some(one) = wanted.take(1, 10) {
                tries += 1;
                wanted.again(1, 10, one.file, one.patience);
            }
        }
        assert!((2..=TRIES.per_second + 3).contains(&tries), "{tries}");
    }

    #[test]
    fn a_workload_that_is_met_in_ever_more_namespaces_uses_up_its_own_room_and_tries_alone() {
        let mut wanted = Wanted::new();
        let kept = (0..1000).filter(|inode| wanted.meet(1, *inode, file(), ROOM));
        assert_eq!(kept.count(), ROOM);
        let burst = usize::try_from(TRIES.burst).unwrap();
        let mut tries = 0;
        for _ in 0..10 * burst {
            for ((number, inode), mut one) in wanted.take_due(|_| ROOM) {
                tries += 1;
                one.patience.due = Instant::now();
                wanted.by.insert((number, inode), one);
            }
        }
        assert!((burst..2 * burst).contains(&tries), "{tries}");
        // All its places are due, and were before.
        assert!(wanted.meet(2, 7, file(), ROOM));
        assert_eq!(keys(wanted.take_due(|_| ROOM)), [(2, 7)]);
    }

    #[test]
    fn workloads_have_their_turns_also_if_there_are_more_than_are_served_at_once() {
        let mut wanted = Wanted::new();
        for inode in 0..ROOM as u64 {
            assert!(wanted.meet(1, inode, file(), ROOM));
        }
        let others = 2..=40;
        for number in others.clone() {
            assert!(wanted.meet(number, 7, file(), ROOM));
        }
        let mut served = Vec::new();
        for _ in 0..3 {
            let taken = keys(wanted.take_due(|_| ROOM));
            assert!(taken.len() <= AT_ONCE);
            served.extend(taken);
        }
        let missed: Vec<u32> = others.filter(|number| !served.contains(&(*number, 7))).collect();
        assert_eq!(missed, [0; 0]);
        assert!(served.contains(&(1, 0)));
    }

    #[test]
    fn what_has_no_room_is_not_taken_and_waits_for_it() {
        let mut wanted = Wanted::new();
        for inode in 0..3 {
            assert!(wanted.meet(1, inode, file(), ROOM));
        }
        assert_eq!(wanted.crowded(|_| 3), [0; 0]);
        assert_eq!(wanted.crowded(|_| 2), [1]);
        assert_eq!(keys(wanted.take_due(|_| 0)), []);
        assert_eq!(keys(wanted.take_due(|_| 2)), [(1, 0), (1, 1)]);
        assert_eq!(keys(wanted.take_due(|_| 1)), [(1, 2)]);
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
