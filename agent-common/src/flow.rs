//! Keys and values of the maps that the data path looks up.

/// Protocol number of TCP (IANA).
pub const TCP: u8 = 6;
/// Protocol number of UDP (IANA).
pub const UDP: u8 = 17;

/// One half-made connection between a client and a listener of ours.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct FlowKey {
    /// Network namespace that both ends live in.
    pub netns: u64,
    /// The client's source address; the port alone would mix up 127.0.0.2 and 127.0.0.3.
    pub addr: [u8; 16],
    /// The client's source port.
    pub port: u16,
    /// The listener's port.
    pub listener_port: u16,
    /// Zero.
    pub pad: u32,
}

/// A workload in a network namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct ListenerKey {
    /// Network namespace cookie.
    pub netns: u64,
    /// Workload number.
    pub workload: u32,
    /// Zero.
    pub pad: u32,
}

/// The agent's ports for a [`ListenerKey`]; 0 where there is none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Listener {
    /// TCP on 127.0.0.1.
    pub tcp4: u16,
    /// TCP on ::1.
    pub tcp6: u16,
    /// DNS over UDP on 127.0.0.1.
    pub dns4: u16,
    /// DNS over UDP on ::1.
    pub dns6: u16,
}

/// A workload's port: one that a rule names, or one that it may listen on.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct DialKey {
    /// Workload number.
    pub workload: u32,
    /// TCP port.
    pub port: u16,
    /// Zero.
    pub pad: u16,
}

/// What a direct rule names, as the data of a longest-prefix key: all but the address matches whole.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct DirectKey {
    /// Workload number.
    pub workload: u32,
    /// Destination port; 0 in a rule for all ports.
    pub port: u16,
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
    /// Destination address.
    pub addr: [u8; 16],
}

impl DirectKey {
    /// Bits before the address.
    pub const FIXED_BITS: u32 = 64;
    /// Bits of a whole key.
    pub const BITS: u32 = Self::FIXED_BITS + 128;
}

/// What an [`EventBudget`] is for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct BudgetKey {
    /// Workload number; 0 for what can't be attributed.
    pub workload: u32,
    /// A [`crate::Reason::class`].
    pub class: u32,
}

/// What had no event of its own, and is counted under this.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct SuppressedKey {
    /// Workload number.
    pub workload: u32,
    /// A [`crate::Reason`] as its number.
    pub reason: u32,
    /// Where a connection that passed went; zeros elsewhere.
    pub addr: [u8; 16],
    /// Its port.
    pub port: u16,
    /// Its protocol.
    pub protocol: u8,
    /// Zero.
    pub pad: u8,
}

/// How many events of a class a workload has sent in the current second.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct EventBudget {
    /// Start of the current second, CLOCK_MONOTONIC in ns.
    pub window: u64,
    /// Sent in it.
    pub sent: u32,
    /// Zero.
    pub pad: u32,
}

/// A workload's entries in `FLOWS`, counted by the kernel side alone: what the agent takes out of the table stands
/// in [`FlowShare`], since a count that two sides wrote would lose steps.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct FlowUse {
    /// Entries put in, or begun to be.
    pub added: u64,
    /// Entries taken out, or not put in after all.
    pub removed: u64,
}

/// How much of `FLOWS` a workload may hold; written by the agent alone.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct FlowShare {
    /// Stale entries that the agent took out.
    pub swept: u64,
    /// Entries that it may have at once.
    pub limit: u32,
    /// Zero.
    pub pad: u32,
}
