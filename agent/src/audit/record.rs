//! The record's schema: stable names, a version, no secret.
//!
//! A record is one line of JSON. Everything beyond printable ASCII is written as `\uXXXX`, so nothing that a
//! client sends can begin a line of its own, or reach the terminal of who reads the file.

mod caller;
mod line;
mod text;
mod timestamp;

use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::policy;

pub use caller::{Caller, Exe, KnownCaller};
pub(super) use line::Beginning;
pub use text::{clip, redact_query};
pub use timestamp::{ConnectionId, RequestId, Timestamp};

/// The schema's version; it grows when a field changes its meaning or goes, not when one is added.
pub const SCHEMA: u32 = 1;

/// The longest path or query in a record, in bytes; the rest is cut off and `truncated` says so.
pub const MAX_PATH: usize = 2048;

/// One call, tunnel, refused connection, direct connection or batch of kernel refusals. Names never change.
///
/// A fact that is not known, or that this kind of record does not have, is absent.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Record {
    /// [`SCHEMA`].
    pub v: u32,
    /// When it began.
    pub time: Timestamp,
    /// UUIDv7; the same id stands in the refusal that the client got.
    pub id: RequestId,
    /// What this is a record of.
    pub kind: Kind,
    /// How it ended.
    pub outcome: Outcome,
    /// The connection that the call came on.
    #[serde(default)]
    pub connection: Option<ConnectionId>,
    /// Who called; its fields stand beside the others.
    #[serde(flatten)]
    pub caller: KnownCaller,
    /// Where the client dialled, before the redirect.
    #[serde(default)]
    pub original_destination: Option<SocketAddr>,
    /// The name in the ClientHello.
    #[serde(default)]
    pub sni: Option<Arc<str>>,
    /// Host and port that the call is for.
    #[serde(default)]
    pub authority: Option<Arc<str>>,
    /// `http` or `https`.
    #[serde(default)]
    pub scheme: Option<Scheme>,
    /// What was spoken with the client.
    #[serde(default)]
    pub protocol: Option<Protocol>,
    /// The request's method.
    #[serde(default)]
    pub method: Option<Box<str>>,
    /// The normalised path, without the query.
    #[serde(default)]
    pub path: Option<Box<str>>,
    /// The query; the values are `*` unless the operator asked for them.
    #[serde(default)]
    pub query: Option<Box<str>>,
    /// Path or query were longer than [`MAX_PATH`].
    #[serde(default)]
    pub truncated: bool,
    /// What policy said.
    #[serde(default)]
    pub decision: Option<Decision>,
    /// Why it was refused, or in `observe` mode would have been: [`policy::DenialReason::code`].
    #[serde(default)]
    pub reason: Option<Arc<str>>,
    /// The rule that decided.
    #[serde(default)]
    pub rule: Option<Arc<str>>,
    /// Which policy decided.
    #[serde(default)]
    pub policy: Option<Arc<PolicyVersion>>,
    /// Which credential went on.
    #[serde(default)]
    pub credential: Option<Credential>,
    /// The address that the agent connected to.
    #[serde(default)]
    pub upstream: Option<SocketAddr>,
    /// The response's status, the agent's own refusals included.
    #[serde(default)]
    pub status: Option<u16>,
    /// Body (or tunnel) bytes from the client.
    #[serde(default)]
    pub bytes_up: u64,
    /// Body (or tunnel) bytes to the client.
    #[serde(default)]
    pub bytes_down: u64,
    /// How long each phase took.
    #[serde(default)]
    pub timings: Timings,
    /// What went wrong.
    #[serde(default)]
    pub error: Option<Error>,
    /// What the kernel side could not tell us.
    #[serde(default)]
    pub kernel: Option<KernelLoss>,
    /// How many refusals of the kernel, or calls without a record, this one stands for.
    #[serde(default)]
    pub count: Option<u64>,
}

impl Record {
    /// A record that knows only when, what and who.
    #[must_use]
    pub fn new(kind: Kind, id: RequestId, time: Timestamp, caller: KnownCaller) -> Self {
        Self {
            v: SCHEMA,
            time,
            id,
            kind,
            outcome: Outcome::Aborted,
            connection: None,
            caller,
            original_destination: None,
            sni: None,
            authority: None,
            scheme: None,
            protocol: None,
            method: None,
            path: None,
            query: None,
            truncated: false,
            decision: None,
            reason: None,
            rule: None,
            policy: None,
            credential: None,
            upstream: None,
            status: None,
            bytes_up: 0,
            bytes_down: 0,
            timings: Timings::default(),
            error: None,
            kernel: None,
            count: None,
        }
    }

    /// Reads one line of the file.
    ///
    /// # Errors
    /// If it is no record.
    pub fn parse(line: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(line)
    }
}

/// What a record is of.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// One HTTP request.
    Call,
    /// One TLS connection passed through unread.
    Tunnel,
    /// One connection that a `direct` rule let pass in the kernel.
    Direct,
    /// Questions about names that no rule mentions; `count` says how many.
    Dns,
    /// Connections or packets that the kernel refused; `count` says how many.
    KernelRefusal,
    /// A connection that ended before it carried a request.
    Connection,
    /// Calls refused while no record could be kept; `count` says how many.
    Unrecorded,
}

/// How it ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The upstream's answer reached the client in full.
    Completed,
    /// Policy refused it.
    Denied,
    /// Something went wrong; `error` says what.
    Failed,
    /// The client left, or the agent died, before it ended.
    Aborted,
}

/// What policy said.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// A rule allows it.
    Allow,
    /// Refused.
    Deny,
    /// Let through by `observe` mode; `reason` says what `enforce` would have refused it for.
    Observe,
}

/// TLS or not.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheme {
    /// HTTP in the clear.
    Http,
    /// HTTP over TLS.
    Https,
}

impl From<policy::Scheme> for Scheme {
    fn from(scheme: policy::Scheme) -> Self {
        match scheme {
            policy::Scheme::Http => Self::Http,
            policy::Scheme::Https => Self::Https,
        }
    }
}

/// What was spoken with the client.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// HTTP/1.0 or HTTP/1.1.
    H1,
    /// HTTP/2.
    H2,
    /// gRPC over HTTP/2.
    Grpc,
    /// A WebSocket.
    Ws,
    /// TLS passed through unread.
    Tls,
    /// TCP, not looked into.
    Tcp,
    /// UDP.
    Udp,
}

/// Which policy decided.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PolicyVersion {
    /// SHA-256 of its sources, in hex.
    pub digest: Arc<str>,
    /// Counts reloads since the agent's start.
    pub generation: u64,
}

/// Which credential went on; never its value.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Credential {
    /// Its name in the policy.
    pub name: Arc<str>,
    /// Which of its values, by count and time of first sight.
    pub version: Arc<str>,
}

/// How long each phase took, in microseconds; absent if it was not reached or, for the first three, belongs to
/// the connection's first call.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Timings {
    /// Finding out who calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identify_us: Option<u64>,
    /// Finding out what is spoken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detect_us: Option<u64>,
    /// TLS with the client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handshake_us: Option<u64>,
    /// The policy's decision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decide_us: Option<u64>,
    /// Getting a connection to the upstream, TLS included; near zero for a pooled one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_us: Option<u64>,
    /// From there to the head of the upstream's answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_byte_us: Option<u64>,
    /// The whole call.
    #[serde(default)]
    pub total_us: u64,
}

/// What went wrong.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Error {
    /// Whose fault it was.
    pub source: Source,
    /// A stable word.
    pub kind: Arc<str>,
    /// For a person; fixed wording, at most 512 bytes.
    pub message: Arc<str>,
}

/// Whose fault an error was.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The workload's side.
    Downstream,
    /// The policy refused.
    Policy,
    /// No value for the credential, or not for this place.
    Credential,
    /// The destination's side.
    Upstream,
    /// The agent itself.
    Internal,
}

/// What the kernel side lost since the last record that says so.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct KernelLoss {
    /// Events that found the ring buffer full.
    pub events: u64,
    /// Connections refused because a map was full.
    pub map_full: u64,
}

#[cfg(test)]
mod tests;
