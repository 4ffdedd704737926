//! Clocks that a test can turn.
//!
//! Three clocks, because they answer different questions: the wall clock dates records and certificates and
//! can be set back; CLOCK_BOOTTIME counts on through sleep and can't be set, so grants and origins use it;
//! CLOCK_MONOTONIC stops in sleep and feeds the liveness word.

mod kept;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};

pub use kept::{Kept, kept};

/// A source of time.
pub trait Clock: Send + Sync {
    /// The wall clock.
    fn wall(&self) -> SystemTime;
    /// Time since boot, sleep included.
    fn boottime(&self) -> Duration;
}

/// The kernel's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn wall(&self) -> SystemTime {
        SystemTime::now()
    }

    fn boottime(&self) -> Duration {
        // The call fails for an unknown clock only; every kernel with BPF has this one.
        clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
    }
}

/// A clock that stands still until a test turns it.
#[derive(Debug)]
pub struct ManualClock {
    start: SystemTime,
    elapsed_ns: AtomicU64,
}

impl ManualClock {
    /// Stands at this wall time, and at zero since boot.
    #[must_use]
    pub fn at(start: SystemTime) -> Self {
        Self {
            start,
            elapsed_ns: AtomicU64::new(0),
        }
    }

    /// Turns it forward; both clocks go together.
    pub fn advance(&self, by: Duration) {
        let ns = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        self.elapsed_ns.fetch_add(ns, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn wall(&self) -> SystemTime {
        self.start + self.boottime()
    }

    fn boottime(&self) -> Duration {
        Duration::from_nanos(self.elapsed_ns.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_when_turned() {
        let clock = ManualClock::at(SystemTime::UNIX_EPOCH);
        assert_eq!(clock.wall(), SystemTime::UNIX_EPOCH);
        clock.advance(Duration::from_secs(3));
        assert_eq!(clock.boottime(), Duration::from_secs(3));
        assert_eq!(clock.wall(), SystemTime::UNIX_EPOCH + Duration::from_secs(3));
    }

    #[test]
    fn time_since_boot_goes_forward() {
        let first = SystemClock.boottime();
        assert!(first > Duration::ZERO);
        assert!(SystemClock.boottime() >= first);
    }
}
