//! What one data thread counts; read by the control thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::audit::Outcome;

/// Counts since the worker's start, and the thread's sign of life.
#[derive(Debug, Default)]
pub struct Figures {
    calls: AtomicU64,
    denied: AtomicU64,
    failed: AtomicU64,
    beat: AtomicU64,
    arriving: AtomicUsize,
    connections: AtomicUsize,
}

/// A connection of the thread, from when it is handed to it until this is dropped.
#[derive(Debug)]
pub struct Carried(Arc<Figures>);

impl Carried {
    /// One more on the thread of these figures.
    #[must_use]
    pub fn by(figures: &Arc<Figures>) -> Self {
        figures.connections.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(figures))
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection that was accepted and has not come far enough to do without the supervisor; until it is dropped.
#[derive(Debug)]
pub struct Arriving(Arc<Figures>);

impl Arriving {
    /// One more on the thread of these figures.
    #[must_use]
    pub fn at(figures: &Arc<Figures>) -> Self {
        figures.arriving.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(figures))
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.0.arriving.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Figures {
    pub(super) fn ended(&self, outcome: Outcome) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        match outcome {
            Outcome::Completed | Outcome::Aborted => {}
            Outcome::Denied => drop(self.denied.fetch_add(1, Ordering::Relaxed)),
            Outcome::Failed => drop(self.failed.fetch_add(1, Ordering::Relaxed)),
        }
    }

    /// Calls and refused connections, of all outcomes.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Those that policy refused.
    #[must_use]
    pub fn denied(&self) -> u64 {
        self.denied.load(Ordering::Relaxed)
    }

    /// Those that failed at the upstream, or inside.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// How many connections the thread has.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// How many connections are on their way in.
    #[must_use]
    pub fn arriving(&self) -> usize {
        self.arriving.load(Ordering::Relaxed)
    }

    /// Says that the thread runs, at `now` (nanoseconds of CLOCK_MONOTONIC).
    pub fn alive(&self, now: u64) {
        self.beat.store(now, Ordering::Relaxed);
    }

    /// When the thread last said so.
    #[must_use]
    pub fn last_alive(&self) -> u64 {
        self.beat.load(Ordering::Relaxed)
    }
}
