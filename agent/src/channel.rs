//! Typed messages and descriptors between supervisor and worker.
//!
//! One stream socket pair; frames as in [`frame`]. The supervisor pushes state (policy, credentials, listeners,
//! intermediates), the worker asks for the three things that only the supervisor can know. Each side trusts the
//! other differently: the supervisor bounds and checks all that comes up ([`supervisor`]), the worker takes
//! what comes down and ends when the channel does ([`worker`]).

pub mod frame;
pub mod supervisor;
pub mod worker;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::addr::HostName;
use crate::credential::secret::WireSecret;
use crate::identity::{Executable, Identity, WorkloadName};
pub use crate::tls::ca::Intermediate;

pub use frame::FrameError;

/// Where canaries dial: a loopback address that nobody uses. Nothing that is sent there can leave the host.
pub const CANARY: SocketAddr = {
    let [a, b, c, d] = callgate_common::names::CANARY_ADDR;
    SocketAddr::new(
        IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
        callgate_common::names::CANARY_PORT,
    )
};

/// Largest frame to the worker, in bytes: a policy of many megabytes fits.
pub const MAX_TO_WORKER: usize = 64 << 20;
/// Largest frame to the supervisor, in bytes: a status answer of a thousand workloads fits.
pub const MAX_TO_SUPERVISOR: usize = 256 << 10;

/// What the supervisor tells the worker. Descriptors travel beside a message, in the order that
/// [`worker::Event`] names them.
#[derive(Debug, Deserialize, Serialize)]
pub enum ToWorker {
    /// First message: settings. Descriptors: the origins map, the liveness map, audit file, in-flight file.
    Start(Box<Start>),
    /// The policy from now on.
    Policy {
        /// Counts up by one with each policy that the supervisor accepted.
        generation: u64,
        /// The texts, in the order in which the supervisor compiled them.
        sources: Vec<PolicySource>,
    },
    /// What upstreams are verified by from now on, instead of what [`Start`] named.
    Roots {
        /// Root certificates, DER.
        certificates: Vec<Vec<u8>>,
    },
    /// A credential's value, or that there is none now.
    Credential {
        /// Its name in the policy.
        name: Arc<str>,
        /// What became of it.
        state: CredentialState,
    },
    /// Serve this listener. Descriptor: the listening socket.
    Listener(ListenerInfo),
    /// Answer this workload's questions about names. Descriptor: the UDP socket.
    Names(ListenerInfo),
    /// Accept no more for this workload in this network namespace, and let go of all sockets there: it is no more.
    Unlisten {
        /// Whose listeners to drop.
        workload: WorkloadName,
        /// The namespace's cookie.
        netns: u64,
    },
    /// A host's intermediate CA, asked for or pushed ahead.
    Intermediate {
        /// The only name that it may sign.
        host: HostName,
        /// The certificate and its key.
        result: Result<Intermediate, Refusal>,
    },
    /// Answer to [`ToSupervisor::Identify`].
    Identity {
        /// The request's number.
        request: u64,
        /// Who called.
        result: Result<Box<Identity>, Refusal>,
    },
    /// Answer to [`ToSupervisor::Executable`].
    Executable {
        /// The request's number.
        request: u64,
        /// What the caller runs now.
        result: Result<Executable, Refusal>,
    },
    /// Answer to [`ToSupervisor::Canary`].
    Canary {
        /// The request's number.
        request: u64,
        /// Whether the supervisor sent it.
        sent: bool,
    },
    /// Answer to [`ToSupervisor::Socket`]. Descriptor, if it is no refusal: the socket, non-blocking.
    Socket {
        /// The request's number.
        request: u64,
        /// Whether there is one.
        result: Result<(), Refusal>,
    },
    /// Write records here from now on. Descriptor: the new audit file.
    AuditFile,
    /// Whether the agent's memory is short: new connections are refused then.
    Memory {
        /// It is.
        short: bool,
    },
    /// Accept nothing more, let calls under way end, then say [`ToSupervisor::Drained`] and exit. Policies and
    /// credentials still come, for the calls under way.
    Drain {
        /// Milliseconds after which what still runs is cut off.
        deadline_ms: u64,
        /// Milliseconds for which a connection without a call is kept open, for its client's next request.
        idle_ms: u64,
    },
    /// As `Drain`, and the supervisor goes: it waits for [`ToSupervisor::Settled`], for a moment at most. What needs it is
    /// refused from then on; the calls go on all the same. Descriptor: a socket of a pair, which closes when connections
    /// need not be kept from being refused any more, since the next agent serves, or none is to come.
    Leave {
        /// As in `Drain`.
        deadline_ms: u64,
        /// As in `Drain`.
        idle_ms: u64,
    },
    /// Asks for [`ToSupervisor::Status`].
    Status {
        /// Repeated in the answer.
        request: u64,
    },
}

/// What the worker tells the supervisor. Never with descriptors.
#[derive(Debug, Deserialize, Serialize)]
pub enum ToSupervisor {
    /// Start is done: listeners are being served.
    Ready,
    /// This policy is in force on every thread.
    PolicyApplied {
        /// The generation of [`ToWorker::Policy`].
        generation: u64,
    },
    /// Who is behind this origin?
    Identify {
        /// Repeated in the answer.
        request: u64,
        /// The kernel's record, as `callgate_common::Origin` lays it out.
        origin: Vec<u8>,
        /// Whether the executable's SHA-256 is needed.
        digest: bool,
    },
    /// What does this process run now?
    Executable {
        /// Repeated in the answer.
        request: u64,
        /// The kernel's record.
        origin: Vec<u8>,
        /// Whether the executable's SHA-256 is needed.
        digest: bool,
    },
    /// Make a TCP socket in the network namespace that this origin tells of.
    Socket {
        /// Repeated in the answer.
        request: u64,
        /// The kernel's record.
        origin: Vec<u8>,
        /// For IPv6.
        v6: bool,
    },
    /// Sign an intermediate for this host.
    Intermediate {
        /// The name, re-parsed by the type on arrival.
        host: HostName,
    },
    /// A connection to [`CANARY`] came in: is it one of the supervisor's?
    Canary {
        /// Repeated in the answer.
        request: u64,
        /// The kernel's record.
        origin: Vec<u8>,
    },
    /// Answer to [`ToWorker::Status`].
    Status {
        /// The request's number.
        request: u64,
        /// What the worker counts.
        figures: Figures,
    },
    /// No connection that was accepted needs the supervisor to begin.
    Settled,
    /// The drain is over.
    Drained,
    /// The worker can't go on; it exits after this.
    Fault {
        /// For the log.
        message: String,
    },
}

/// The worker's part of the settings.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Start {
    /// Data threads to run, at least one.
    pub threads: u16,
    /// What a connection, a call and a workload may use.
    pub limits: Limits,
    /// Root certificates that upstreams must chain to, DER.
    pub upstream_roots: Vec<Vec<u8>>,
    /// Resolvers to ask for upstream names, in order of preference.
    pub resolvers: Vec<SocketAddr>,
    /// The text of the host's hosts file.
    pub hosts: String,
    /// Whether records keep query values.
    pub query_values: bool,
    /// Calls that one workload may have under way.
    pub slots_per_workload: u32,
    /// Cookie of the agent's own network namespace.
    pub netns: u64,
}

/// The limits of DESIGN.md section 6; times in milliseconds, sizes in bytes.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Limits {
    /// Longest ClientHello.
    pub client_hello_bytes: u32,
    /// Time for it to arrive.
    pub client_hello_ms: u32,
    /// Time until the client's first byte tells the protocol.
    pub detection_ms: u32,
    /// Longest header section.
    pub header_bytes: u32,
    /// Most header fields.
    pub header_fields: u32,
    /// Time for the header section to arrive.
    pub header_ms: u32,
    /// Silence after which a connection is closed.
    pub idle_ms: u32,
    /// Time that one write may stall.
    pub write_stall_ms: u32,
    /// Time for the connection to an upstream, TLS included.
    pub connect_ms: u32,
    /// Time that the head of an upstream's answer may take.
    pub answer_ms: u32,
    /// Concurrent streams on one HTTP/2 connection.
    pub h2_streams: u32,
    /// Resets tolerated within `h2_reset_window_ms`.
    pub h2_resets: u32,
    /// See `h2_resets`.
    pub h2_reset_window_ms: u32,
    /// Connections of one workload.
    pub connections: u32,
    /// Buffered bytes of one workload.
    pub buffer_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            client_hello_bytes: 64 << 10,
            client_hello_ms: 10_000,
            detection_ms: 5_000,
            header_bytes: 64 << 10,
            header_fields: 100,
            header_ms: 15_000,
            idle_ms: 300_000,
            write_stall_ms: 60_000,
            connect_ms: 10_000,
            answer_ms: 300_000,
            h2_streams: 100,
            h2_resets: 200,
            h2_reset_window_ms: 10_000,
            connections: 1024,
            buffer_bytes: 64 << 20,
        }
    }
}

/// One policy file.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PolicySource {
    /// Its path, for messages.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// Where a workload's connections arrive.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ListenerInfo {
    /// Whose connections these are.
    pub workload: WorkloadName,
    /// The kernel's number of the workload.
    pub number: u32,
    /// The bound address.
    pub addr: SocketAddr,
    /// Cookie of the network namespace that it is bound in.
    pub netns: u64,
}

/// What became of a credential.
#[derive(Debug, Deserialize, Serialize)]
pub enum CredentialState {
    /// It can be used.
    Available {
        /// The secret.
        value: WireSecret,
        /// Tells two values apart without showing them; goes into records.
        version: Arc<str>,
    },
    /// Calls that need it are refused.
    Unavailable {
        /// For records and status; never has part of a value.
        reason: String,
    },
}

/// Why the supervisor did not answer a question; shown in records.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// What was missing or did not agree.
    pub reason: String,
}

impl Refusal {
    /// A refusal for this reason.
    #[must_use]
    pub fn new(reason: impl std::fmt::Display) -> Self {
        Self {
            reason: reason.to_string(),
        }
    }
}

/// What the worker counts, since its start unless it says "now".
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Figures {
    /// The policy in force.
    pub generation: u64,
    /// Open connections of workloads, now.
    pub connections: u64,
    /// Calls, of all outcomes.
    pub calls: u64,
    /// Calls and connections refused.
    pub denied: u64,
    /// Calls that failed at the upstream, or inside.
    pub failed: u64,
    /// Why records can't be written now, if they can't.
    pub audit_error: Option<String>,
    /// By workload.
    pub workloads: Vec<WorkloadFigures>,
}

/// One workload's part of [`Figures`].
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct WorkloadFigures {
    /// The workload.
    pub workload: WorkloadName,
    /// Open connections, now.
    pub connections: u64,
}

#[cfg(test)]
mod tests;
