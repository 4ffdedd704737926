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
    /// Zero.
    pub pad: u32,
}

impl Event {
    /// Bytes of a sample.
    pub const SIZE: usize = size_of::<Self>();

    /// Reads a sample; `None` if it is too short.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (reason, rest) = bytes.get(Origin::SIZE..)?.split_first_chunk()?;
        let (pad, _) = rest.split_first_chunk()?;
        Some(Self {
            origin: Origin::from_bytes(bytes)?,
            reason: u32::from_ne_bytes(*reason),
            pad: u32::from_ne_bytes(*pad),
        })
    }
}
