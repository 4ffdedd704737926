//! Messages of the kernel programs in the ring buffer.

use crate::Origin;

/// A refusal, or a direct connection let through.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Event {
    /// Who and where; which facts hold is in [`Origin::present`].
    pub origin: Origin,
    /// A [`crate::Reason`] as its number.
    pub reason: u32,
    /// Events of this workload that were suppressed since the last one sent.
    pub suppressed: u32,
}

impl Event {
    /// Bytes of a sample.
    pub const SIZE: usize = size_of::<Self>();
}
