//! Records that somebody may cause without limit: so many in a second, the rest in one that counts them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::identity::WorkloadName;

/// Records that one workload may cause within [`WINDOW`].
const RECORDS: u32 = 20;
const WINDOW: Duration = Duration::from_secs(1);

/// One source of records.
#[derive(Debug)]
pub(super) struct Flood(Mutex<Window>);

#[derive(Debug)]
struct Window {
    since: Instant,
    written: u32,
    left_out: u64,
}

impl Default for Flood {
    fn default() -> Self {
        Self(Mutex::new(Window {
            since: Instant::now(),
            written: 0,
            left_out: 0,
        }))
    }
}

impl Flood {
    /// How many events the next record stands for, this one included; `None` if it has to wait.
    pub(super) fn count(&self) -> Option<u64> {
        self.count_at(Instant::now())
    }

    /// How many are still without a record; those have one now.
    fn left_out_at(&self, now: Instant) -> Option<u64> {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let over = now.saturating_duration_since(window.since) >= WINDOW;
        (over && window.left_out > 0).then(|| std::mem::take(&mut window.left_out))
    }

    fn count_at(&self, now: Instant) -> Option<u64> {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(window.since) >= WINDOW {
            (window.since, window.written) = (now, 0);
        }
        if window.written >= RECORDS {
            window.left_out += 1;
            return None;
        }
        window.written += 1;
        Some(std::mem::take(&mut window.left_out) + 1)
    }
}

/// Connections to each workload's listener that no workload made: anybody on the host can make them.
#[derive(Debug, Default)]
pub struct Strangers(Mutex<HashMap<WorkloadName, Arc<Flood>>>);

impl Strangers {
    pub(super) fn of(&self, listener: &WorkloadName) -> Arc<Flood> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flood) = all.get(listener) {
            return Arc::clone(flood);
        }
        Arc::clone(all.entry(listener.clone()).or_default())
    }

    /// What a flood that has ended left without a record.
    pub(super) fn left_out(&self) -> Vec<(WorkloadName, u64)> {
        let now = Instant::now();
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter()
            .filter_map(|(listener, flood)| Some((listener.clone(), flood.left_out_at(now)?)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_and_its_end_too() {
        let (flood, start) = (Flood::default(), Instant::now() + WINDOW);
        for _ in 0..RECORDS {
            assert_eq!(flood.count_at(start), Some(1));
        }
        for _ in 0..7 {
            assert_eq!(flood.count_at(start), None);
        }
        assert_eq!(flood.left_out_at(start), None, "the window is open");
        assert_eq!(flood.count_at(start + WINDOW), Some(8));
        for _ in 0..RECORDS {
            flood.count_at(start + WINDOW);
        }
        assert_eq!(flood.left_out_at(start + 2 * WINDOW), Some(1));
        assert_eq!(flood.left_out_at(start + 2 * WINDOW), None);
    }
}
