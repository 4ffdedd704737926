//! What is kept in a socket's own storage.

/// On each socket that a managed process made.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SocketMark {
    /// Where the process meant to go, if it was turned round.
    pub dst_addr: [u8; 16],
    /// Workload of the creator.
    pub workload: u32,
    /// The port meant.
    pub dst_port: u16,
    /// The agent's port that it was turned to; 0 if it was not.
    pub turned_to: u16,
}

/// On each listener of the agent's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ListenerMark {
    /// The workload that it serves.
    pub workload: u32,
}
