//! When canaries fly, and where: from the agent's own network namespace into every workload each time, into the others
//! as many as are not too dear, those first that were tried longest ago.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::{Cage, Key};

/// Canaries of one round into other network namespaces: a workload can be in many, and each costs the start of a process.
const ELSEWHERE: usize = 64;
/// After a failure those that failed are tried again sooner: so many of them.
const FAILED: usize = 16;
/// So soon.
const AGAIN: Duration = Duration::from_secs(5);

/// The plan.
#[derive(Debug)]
pub(super) struct Rounds {
    interval: Duration,
    due: Instant,
    again: Option<Instant>,
    /// In which turn each was tried last; none that was not there at the last turn.
    tried: BTreeMap<Key, u64>,
    turn: u64,
}

impl Rounds {
    /// The first is due after this interval.
    pub(super) fn new(interval: Duration) -> Self {
        Self {
            interval,
            due: Instant::now() + interval,
            again: None,
            tried: BTreeMap::new(),
            turn: 0,
        }
    }

    /// Whether one is due.
    pub(super) fn is_due(&self) -> bool {
        let now = Instant::now();
        now >= self.due || self.again.is_some_and(|again| now >= again)
    }

    /// One failed.
    pub(super) fn hurry(&mut self) {
        self.again = Some(Instant::now() + AGAIN);
    }

    /// Whose turn it is among these.
    pub(super) fn choose(&mut self, mut cages: Vec<Cage>, failed: impl Fn(&Cage) -> bool) -> Vec<Cage> {
        let is_whole = Instant::now() >= self.due;
        self.turn += 1;
        self.again = None;
        let before = std::mem::take(&mut self.tried);
        for cage in &cages {
            let turn = before.get(&cage.key()).copied().unwrap_or(0);
            self.tried.insert(cage.key(), turn);
        }
        // Stable: what was never tried keeps its order.
        cages.sort_by_key(|cage| self.tried.get(&cage.key()).copied());
        let (mut elsewhere, mut again) = (ELSEWHERE, FAILED);
        let mut chosen = cages;
        chosen.retain(|cage| {
            if failed(cage) && again > 0 {
                again -= 1;
                return true;
            }
            if is_whole && cage.space.is_none() {
                return true;
            }
            let is_next = is_whole && cage.space.is_some() && elsewhere > 0;
            elsewhere -= usize::from(is_next);
            is_next
        });
        for cage in &chosen {
            self.tried.insert(cage.key(), self.turn);
        }
        if is_whole {
            self.due = Instant::now() + self.interval;
        }
        chosen
    }
}
