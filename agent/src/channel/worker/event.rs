//! What the supervisor pushes to a worker.

use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use crate::addr::HostName;
use crate::channel::{CredentialState, Intermediate, ListenerInfo, PolicySource, Start};
use crate::identity::WorkloadName;

/// What the supervisor pushed.
#[derive(Debug)]
pub enum Event {
    /// First event: settings and the descriptors to work with.
    Start(Box<Start>, StartDescriptors),
    /// The policy from now on; answer with [`super::Client::policy_applied`].
    Policy {
        /// Its number.
        generation: u64,
        /// Its texts.
        sources: Vec<PolicySource>,
    },
    /// What upstreams are verified by from now on.
    Roots {
        /// Root certificates, DER.
        certificates: Vec<Vec<u8>>,
    },
    /// A credential's new state.
    Credential {
        /// Its name in the policy.
        name: Arc<str>,
        /// What became of it.
        state: CredentialState,
    },
    /// Serve this listener; it is non-blocking.
    Listener(ListenerInfo, TcpListener),
    /// Answer this workload's questions about names; the socket is non-blocking.
    Names(ListenerInfo, UdpSocket),
    /// Accept no more for this workload in this network namespace, and let go of all sockets there.
    Unlisten {
        /// Whose listeners to drop.
        workload: WorkloadName,
        /// The namespace's cookie.
        netns: u64,
    },
    /// A host's intermediate that was pushed ahead or asked for; askers are answered before this event.
    Intermediate {
        /// The only name that it may sign.
        host: HostName,
        /// The CA.
        intermediate: Arc<Intermediate>,
    },
    /// Write records here from now on.
    AuditFile(OwnedFd),
    /// Whether the agent's memory is short.
    Memory {
        /// It is: refuse new connections.
        short: bool,
    },
    /// Accept nothing more and end within this time.
    Drain {
        /// How long calls may still run.
        deadline: Duration,
        /// How long connections without one stay open.
        idle: Duration,
    },
    /// As [`Event::Drain`], and go on alone; see [`crate::channel::ToWorker::Leave`].
    Leave {
        /// How long calls may still run.
        deadline: Duration,
        /// How long connections without one stay open.
        idle: Duration,
        /// Closes when the next agent serves, or none is to come.
        baton: UnixStream,
    },
    /// Answer with [`super::Client::status`].
    Status {
        /// Repeated in the answer.
        request: u64,
    },
}

/// The descriptors of [`Event::Start`].
#[derive(Debug)]
pub struct StartDescriptors {
    /// Socket storage with each accepted socket's origin.
    pub origins: OwnedFd,
    /// The liveness word.
    pub liveness: OwnedFd,
    /// The audit file, opened for appending.
    pub audit: OwnedFd,
    /// The in-flight table.
    pub inflight: OwnedFd,
}
