//! Records that somebody may cause without limit: so many in a second, the rest in one that counts them.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted() {
        let (flood, start) = (Flood::default(), Instant::now() + WINDOW);
        for _ in 0..RECORDS {
            assert_eq!(flood.count_at(start), Some(1));
        }
        for _ in 0..7 {
            assert_eq!(flood.count_at(start), None);
        }
        assert_eq!(flood.count_at(start + WINDOW), Some(8));
    }
}
