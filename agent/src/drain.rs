//! Stopping gently: a signal, a watch, a deadline.
//!
//! Whoever holds a [`Watch`] has work under way; the drain is over when the last one is dropped or the deadline
//! passes. Works across threads and runtimes.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// Starts the drain and waits for its end.
#[derive(Debug)]
pub struct Signal {
    deadline: watch::Sender<Option<Instant>>,
}

/// Tells a piece of work that it should come to an end. Held for as long as the work lasts.
#[derive(Clone, Debug)]
pub struct Watch {
    deadline: watch::Receiver<Option<Instant>>,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Drained {
    /// All work came to its end.
    Gently,
    /// The deadline passed first.
    CutOff,
}

/// A signal and its first watch.
#[must_use]
pub fn channel() -> (Signal, Watch) {
    let (sender, receiver) = watch::channel(None);
    (Signal { deadline: sender }, Watch { deadline: receiver })
}

impl Signal {
    /// Tells every watch, then waits until all are dropped, for `within` at most.
    pub async fn drain(self, within: Duration) -> Drained {
        let deadline = Instant::now() + within;
        self.deadline.send_replace(Some(deadline));
        match tokio::time::timeout_at(deadline, self.deadline.closed()).await {
            Ok(()) => Drained::Gently,
            Err(_elapsed) => Drained::CutOff,
        }
    }
}

impl Watch {
    /// Whether a drain has begun.
    #[must_use]
    pub fn draining(&self) -> bool {
        self.deadline.borrow().is_some()
    }

    /// Returns when a drain begins, with the time at which work is cut off. A signal that was dropped without
    /// a drain cuts off at once.
    pub async fn signaled(&mut self) -> Instant {
        match self.deadline.wait_for(Option::is_some).await {
            Ok(deadline) => deadline.unwrap_or_else(Instant::now),
            Err(_dropped) => Instant::now(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_drain_ends_when_the_last_work_does() {
        let (signal, watch) = channel();
        let mut other = watch.clone();
        let work = tokio::spawn(async move {
            other.signaled().await;
        });
        drop(watch);
        assert_eq!(signal.drain(Duration::from_secs(60)).await, Drained::Gently);
        work.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_does_not_end_is_cut_off() {
        let (signal, watch) = channel();
        assert_eq!(signal.drain(Duration::from_secs(60)).await, Drained::CutOff);
        assert!(watch.draining());
    }
}
