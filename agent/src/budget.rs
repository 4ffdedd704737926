//! What one workload may ask for in a time: budgets that refill. Lines in the agent's log are of that kind too.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Budgets kept at once; beyond it those that are full again are forgotten, which changes nothing.
const MANY: usize = 4096;

/// How much there is, and how fast it comes back.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// All that can be spent at once.
    pub burst: u64,
    /// What comes back in a second.
    pub per_second: u64,
}

/// One budget, full at first.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    left: f64,
    at: Instant,
}

impl Budget {
    /// A full one.
    #[must_use]
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self {
            left: as_f64(rate.burst),
            at: now,
        }
    }

    /// Spends `amount` if there is so much.
    pub fn spend(&mut self, rate: Rate, amount: u64, now: Instant) -> bool {
        self.refill(rate, now);
        let amount = as_f64(amount);
        let enough = amount <= self.left;
        if enough {
            self.left -= amount;
        }
        enough
    }

    fn refill(&mut self, rate: Rate, now: Instant) {
        let back = now.saturating_duration_since(self.at).as_secs_f64() * as_f64(rate.per_second);
        self.left = (self.left + back).min(as_f64(rate.burst));
        self.at = now;
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "budgets are far below 2^53, and near is good enough"
)]
fn as_f64(amount: u64) -> f64 {
    amount as f64
}

/// A budget of the same rate for each of many.
#[derive(Debug)]
pub struct Budgets<K> {
    rate: Rate,
    by: Mutex<HashMap<K, Budget>>,
}

impl<K: Eq + Hash> Budgets<K> {
    /// All full.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        Self {
            rate,
            by: Mutex::default(),
        }
    }

    /// Spends `amount` of this one's budget if there is so much.
    pub fn spend<Q>(&self, whose: &Q, amount: u64) -> bool
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ToOwned<Owned = K> + ?Sized,
    {
        let now = Instant::now();
        let mut by = self.by.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(budget) = by.get_mut(whose) {
            return budget.spend(self.rate, amount, now);
        }
        if by.len() >= MANY {
            by.retain(|_, budget| {
                budget.refill(self.rate, now);
                budget.left < as_f64(self.rate.burst)
            });
        }
        let mut budget = Budget::new(self.rate, now);
        let enough = budget.spend(self.rate, amount, now);
        by.insert(whose.to_owned(), budget);
        enough
    }
}

/// Ten lines at once, and then one a minute.
const LINES: Rate = Rate {
    burst: 10 * LINE,
    per_second: 1,
};
/// What a line costs of it.
const LINE: u64 = 60;

/// Lines of one kind in the agent's log that are written at somebody else's will: few, so that they crowd nothing out
/// there (journald drops all of a service that says too much). What befalls each call is in the audit log.
#[derive(Debug)]
pub struct Lines<K> {
    budgets: Budgets<K>,
    left_out: Mutex<HashMap<K, u64>>,
}

impl<K: Eq + Hash> Default for Lines<K> {
    fn default() -> Self {
        Self {
            budgets: Budgets::new(LINES),
            left_out: Mutex::default(),
        }
    }
}

impl<K: Eq + Hash> Lines<K> {
    /// Whether one more may be written at this one's will, and how many were left out since the last that was.
    pub fn next<Q>(&self, whose: &Q) -> Option<u64>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ToOwned<Owned = K> + ?Sized,
    {
        let may = self.budgets.spend(whose, LINE);
        let mut left_out = self.left_out.lock().unwrap_or_else(PoisonError::into_inner);
        if may {
            return Some(left_out.remove(whose).unwrap_or_default());
        }
        *left_out.entry(whose.to_owned()).or_default() += 1;
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const RATE: Rate = Rate {
        burst: 10,
        per_second: 5,
    };

    #[test]
    fn a_budget_is_spent_and_comes_back_but_never_over_its_size() {
        let start = Instant::now();
        let mut budget = Budget::new(RATE, start);
        assert!(budget.spend(RATE, 10, start));
        assert!(!budget.spend(RATE, 1, start));
        assert!(budget.spend(RATE, 5, start + Duration::from_secs(1)));
        assert!(!budget.spend(RATE, 1, start + Duration::from_secs(1)));
        let later = start + Duration::from_secs(1000);
        assert!(!budget.spend(RATE, 11, later) && budget.spend(RATE, 10, later));
    }

    #[test]
    fn one_that_spends_all_takes_nothing_from_another() {
        let budgets = Budgets::<u32>::new(RATE);
        while budgets.spend(&1, 5) {}
        assert!(budgets.spend(&2, 10));
    }

    #[test]
    fn few_lines_are_written_at_ones_will_and_those_left_out_are_told() {
        let lines = Lines::<u32>::default();
        let written = (0..1000).filter(|_| lines.next(&1).is_some()).count();
        assert_eq!(written, 10);
        assert_eq!(lines.next(&2), Some(0), "another has its own");
        // A minute goes by.
        lines.budgets.by.lock().unwrap().get_mut(&1).unwrap().left = as_f64(LINE);
        assert_eq!(lines.next(&1), Some(990));
        assert_eq!(lines.next(&1), None);
    }
}
