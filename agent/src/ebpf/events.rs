//! Kernel refusals from the ring buffer.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use aya::maps::{MapData, RingBuf};
use callgate_common::{Event, Origin, Reason};
use tokio::io::unix::AsyncFd;

use super::sys;

/// One refusal, or one direct connection let through.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// Why.
    pub reason: Reason,
    /// Who and where, as far as the kernel knew ([`Origin::has_caller`]).
    pub origin: Origin,
    /// As many more of the same, of which nothing else is known.
    pub suppressed: u32,
}

/// The reading end: drain it now and then, and when its bell rings.
pub struct Events(RingBuf<MapData>);

impl Events {
    pub(super) fn new(ring: RingBuf<MapData>) -> Self {
        Self(ring)
    }

    /// Its bell. To be hung in a tokio runtime.
    ///
    /// # Errors
    /// If the descriptor can't be waited at.
    pub fn bell(&self) -> io::Result<Bell> {
        let events = self.0.as_fd().try_clone_to_owned()?;
        Ok(Bell(Some(sys::wait_at(events)?)))
    }

    /// Hands over everything that is there, at most `limit` reports; samples of an unknown kind are skipped.
    pub fn drain(&mut self, limit: usize, mut report: impl FnMut(Report)) {
        for _ in 0..limit {
            let Some(sample) = self.0.next() else { return };
            let Some(event) = Event::from_bytes(&sample) else {
                continue;
            };
            if let Some(reason) = Reason::from_number(event.reason) {
                report(Report {
                    reason,
                    origin: event.origin,
                    suppressed: 0,
                });
            }
        }
    }
}

/// Tells at once of [`Reason::NoListener`], which the agent can help; of nothing else.
#[derive(Debug, Default)]
pub struct Bell(Option<AsyncFd<OwnedFd>>);

impl Bell {
    /// Waits until it rings; for ever if it belongs to no [`Events`].
    pub async fn rung(&self) {
        let Some(events) = &self.0 else {
            return std::future::pending().await;
        };
        match events.readable().await {
            Ok(mut ready) => ready.clear_ready(),
            // The runtime ends.
            Err(_) => std::future::pending().await,
        }
    }
}
