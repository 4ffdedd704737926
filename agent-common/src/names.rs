//! Names and sizes of maps and programs, as both sides use them.

/// Pinned maps, each at `BPFFS_DIR/maps/NAME`.
pub const MAPS: [&str; 16] = [
    WORKLOADS,
    LISTENERS,
    DIAL_PORTS,
    DIRECT,
    LISTEN_PORTS,
    LIVENESS,
    SOCKETS,
    ORIGINS,
    LISTENER_MARKS,
    FLOWS,
    FLOW_USE,
    FLOW_SHARES,
    EVENTS,
    SUPPRESSED,
    SUPPRESSED_DIRECT,
    COUNTERS,
];

/// Cgroup id to workload number; the agent writes.
pub const WORKLOADS: &str = "WORKLOADS";
/// Network namespace and workload to listener ports; the agent writes.
pub const LISTENERS: &str = "LISTENERS";
/// Workload and port that some rule names; the agent writes.
pub const DIAL_PORTS: &str = "DIAL_PORTS";
/// Destinations that pass in the kernel, by prefix; the agent writes.
pub const DIRECT: &str = "DIRECT";
/// Workload and port that it may listen on; the agent writes.
pub const LISTEN_PORTS: &str = "LISTEN_PORTS";
/// Two words: CLOCK_MONOTONIC in ns of the worker's last sign of life ([`BEAT_SLOT`]; the worker writes), and
/// the [`crate::abi::VERSION`] of all pins ([`ABI_SLOT`]; the loader writes).
pub const LIVENESS: &str = "LIVENESS";
/// Socket storage: which workload made the socket and where it was turned to; the kernel writes.
pub const SOCKETS: &str = "SOCKETS";
/// Socket storage: the caller's facts, on the client's and then on the accepted socket; the kernel writes.
pub const ORIGINS: &str = "ORIGINS";
/// Socket storage: this is a listener of the agent's; the agent writes.
pub const LISTENER_MARKS: &str = "LISTENER_MARKS";
/// Connections between the client's and the server's end of the handshake; the kernel writes.
pub const FLOWS: &str = "FLOWS";
/// How many entries of [`FLOWS`] each workload put in and took out; the agent creates, the kernel counts.
pub const FLOW_USE: &str = "FLOW_USE";
/// How many entries of [`FLOWS`] each workload may have; the agent writes.
pub const FLOW_SHARES: &str = "FLOW_SHARES";
/// Ring buffer of [`crate::Event`]; the kernel writes.
pub const EVENTS: &str = "EVENTS";
/// How often something had no event of its own, by workload and reason; the kernel counts, the agent takes out.
pub const SUPPRESSED: &str = "SUPPRESSED";
/// The same for connections that passed by a direct rule, by destination, as far as there is room.
pub const SUPPRESSED_DIRECT: &str = "SUPPRESSED_DIRECT";
/// Per CPU, one counter for each [`crate::Reason`]; the kernel writes.
pub const COUNTERS: &str = "COUNTERS";
/// Event budgets of each workload; the agent creates, the kernel counts. Not pinned: it holds one second.
pub const EVENT_BUDGETS: &str = "EVENT_BUDGETS";
/// The agent's host's own IPv6 addresses; the agent writes. Not pinned: each start reads them anew.
pub const OWN_ADDRESSES: &str = "OWN_ADDRESSES";
/// The read-only block that the loader fills.
pub const CONFIG: &str = "CONFIG";

/// Workloads that one host can have.
pub const MAX_WORKLOADS: usize = 4096;
/// Workload and namespace pairs.
pub const MAX_LISTENERS: usize = 8192;
/// Workload and port pairs.
pub const MAX_PORTS: usize = 65_536;
/// Direct destinations.
pub const MAX_DIRECT: usize = 65_536;
/// Handshakes under way at once; one entry lives for the length of half a handshake.
pub const MAX_FLOWS: usize = 65_536;
/// Of these, the most that one workload may have: as many as its listener lets wait.
pub const MAX_FLOW_SHARE: u32 = 4096;
/// IPv6 addresses that one host can have.
pub const MAX_OWN_ADDRESSES: usize = 4096;
/// Bytes of the ring buffer.
pub const EVENT_BYTES: usize = 1 << 20;
/// Entries of the event budgets: those of each workload, and of what can't be attributed.
pub const MAX_BUDGETS: usize = (MAX_WORKLOADS + 1) * crate::verdict::CLASSES as usize;
/// Pairs of workload and reason.
pub const MAX_SUPPRESSED: usize = (MAX_WORKLOADS + 1) * crate::verdict::COUNTERS;
/// Destinations of direct connections that had no event of their own, between two looks of the agent.
pub const MAX_SUPPRESSED_DIRECT: usize = 4096;
/// Events of one class that one workload gets through in one second.
pub const EVENTS_PER_SECOND: u32 = 64;

/// Where the agent's canaries dial, which every workload may: a loopback address that nobody uses.
pub const CANARY_ADDR: [u8; 4] = [127, 67, 65, 78];
/// Their port. One that needs no right to listen on, is nobody's by IANA's list, and is below what the kernel gives out.
pub const CANARY_PORT: u16 = 25447;

/// Index of the sign of life in [`LIVENESS`].
pub const BEAT_SLOT: u32 = 0;
/// Index of the version in [`LIVENESS`].
pub const ABI_SLOT: u32 = 1;
