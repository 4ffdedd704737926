//! Why the kernel refused: numbers on the wire, an enum in the agent.

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $text:literal;)+) => {
        /// Why a kernel program refused (or, for `Direct`, let pass); the number is the index in `COUNTERS`.
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        #[repr(u32)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name = $number,)+
        }

        impl Reason {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The stable name, as records have it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),+ }
            }

            /// The reason with this number.
            #[must_use]
            pub const fn from_number(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$name),)+ _ => None }
            }
        }
    };
}

/// Event budgets of each workload: nothing that floods one class keeps another's events out.
pub const CLASSES: u32 = 3;
/// Connections that passed.
const PASSED: u32 = 0;
/// Calls of a process that were refused.
const CALLS: u32 = 1;
/// Packets that were dropped.
const PACKETS: u32 = 2;

impl Reason {
    /// Whose budget its events are taken from.
    #[must_use]
    pub const fn class(self) -> u32 {
        match self {
            Self::Direct | Self::Redirected => PASSED,
            Self::Egress | Self::Ingress | Self::FlowLost | Self::OriginLost | Self::Reflected => PACKETS,
            Self::UnmarkedSocket
            | Self::ForeignSocket
            | Self::AgentSilent
            | Self::PortNotNamed
            | Self::NoListener
            | Self::ListenerNotOurs
            | Self::DeviceBound
            | Self::MapFull
            | Self::UdpNotAllowed
            | Self::SocketType
            | Self::EventLost
            | Self::EventSuppressed
            | Self::HandedSocket
            | Self::FlowShare
            | Self::SourceAddress
            | Self::SocketOption => CALLS,
        }
    }
}

/// Slots in `COUNTERS`.
pub const COUNTERS: usize = 32;

reasons! {
    /// Passed in the kernel by a direct rule.
    Direct = 0, "direct";
    /// Turned to the agent's listener (counted, no event).
    Redirected = 1, "redirected";
    /// The socket carries no mark: made outside the workload, accepted, or older than its enrolment.
    UnmarkedSocket = 2, "unmarked_socket";
    /// The caller's workload is not the one that made the socket.
    ForeignSocket = 3, "foreign_socket";
    /// The agent has shown no sign of life for too long.
    AgentSilent = 4, "agent_silent";
    /// No rule of the workload names the port.
    PortNotNamed = 5, "port_not_named";
    /// The workload has no listener in this network namespace, or none for this address family.
    NoListener = 6, "no_listener";
    /// The agent's port is not held by the agent.
    ListenerNotOurs = 7, "listener_not_ours";
    /// The socket is bound to a device and could not be moved to the loopback one.
    DeviceBound = 8, "device_bound";
    /// A kernel map is full, or memory is short.
    MapFull = 9, "map_full";
    /// UDP that is not DNS to the agent's stub.
    UdpNotAllowed = 10, "udp_not_allowed";
    /// A socket type other than TCP and UDP.
    SocketType = 11, "socket_type";
    /// A packet to a place that is neither loopback nor a direct rule's.
    Egress = 12, "egress";
    /// A packet that is no answer, to a port that the workload may not listen on.
    Ingress = 13, "ingress";
    /// The established connection could not be handed to the listener's side: the agent will refuse it.
    FlowLost = 14, "flow_lost";
    /// The ring buffer was full (counted; `SUPPRESSED` says of what).
    EventLost = 15, "event_lost";
    /// The workload sent more events than its budget for that class (counted; `SUPPRESSED` says of what).
    EventSuppressed = 16, "event_suppressed";
    /// The accepted socket had no room for its origin.
    OriginLost = 17, "origin_lost";
    /// A process held a socket that was made outside its workload; the agent cut it off (counted by the agent).
    HandedSocket = 18, "handed_socket";
    /// The workload has as many handshakes under way as its share of the table allows.
    FlowShare = 19, "flow_share";
    /// The socket is bound to an IPv6 address that is not this host's: the answers would be sent to whoever has it.
    SourceAddress = 20, "source_address";
    /// A socket option that makes the kernel send packets of the process's wording, or lets it use foreign addresses.
    SocketOption = 21, "socket_option";
    /// The agent's own socket would have sent to another host from a loopback address: an answer to a forged source.
    Reflected = 22, "reflected";
}
