//! When a busy time is over, so that the memory it took can go back to the system.

use std::time::{Duration, Instant};

/// Longer than anything is kept for calls to come: upstream connections have been let go of by then.
const SPAN: Duration = Duration::from_secs(60);
/// So much less than in the busiest span is a lull. Not none at all: something asks for its health all the time.
const LESS: u64 = 10;

/// Compares spans of time by the calls in them.
#[derive(Debug)]
pub(super) struct Lull {
    began: Instant,
    /// Those before this span.
    calls: u64,
    /// Calls in the busiest span since the last lull.
    busiest: u64,
}

impl Lull {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            began: now,
            calls: 0,
            busiest: 0,
        }
    }

    /// Whether a busy time has just come to its end; `calls` are all that there ever were. To be asked often.
    pub(super) fn has_come(&mut self, calls: u64, now: Instant) -> bool {
        if now.duration_since(self.began) < SPAN {
            return false;
        }
        let of_late = calls.saturating_sub(self.calls);
        (self.began, self.calls) = (now, calls);
        self.busiest = self.busiest.max(of_late);
        let is_over = self.busiest > 0 && of_late.saturating_mul(LESS) <= self.busiest;
        if is_over {
            self.busiest = of_late;
        }
        is_over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was said of each span, by the calls in it.
    fn said(calls: &[u64]) -> Vec<bool> {
        let start = Instant::now();
        let (mut lull, mut all) = (Lull::new(start), 0);
        let ends = (1..).map(|span| start + SPAN * span);
        ends.zip(calls)
            .map(|(end, calls)| {
                all += calls;
                assert!(!lull.has_come(all, end - Duration::from_millis(1)));
                lull.has_come(all, end)
            })
            .collect()
    }

    #[test]
    fn the_first_quiet_span_behind_busy_ones_is_one_and_no_other() {
        assert_eq!(said(&[0, 0]), [false, false]);
        assert_eq!(said(&[5000, 300, 0, 0]), [false, true, true, false]);
        assert_eq!(
            said(&[5000, 6000, 900, 7, 7, 7]),
            [false, false, false, true, false, false]
        );
    }
}
