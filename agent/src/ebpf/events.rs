//! Kernel refusals from the ring buffer.

use std::os::fd::{AsFd, BorrowedFd};

use aya::maps::{MapData, RingBuf};
use callgate_common::{Event, Origin, Reason};

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

/// The reading end; poll its descriptor for input, then drain.
pub struct Events(RingBuf<MapData>);

impl Events {
    pub(super) fn new(ring: RingBuf<MapData>) -> Self {
        Self(ring)
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

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
