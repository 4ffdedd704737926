//! A record as its line: one JSON object, in parts, since who called is in words already.

use std::net::SocketAddr;

use serde::Serialize;
use serde_json::Error;

use super::text::Ascii;
use super::{
    ConnectionId, Credential, Decision, KernelLoss, Kind, Outcome, PolicyVersion, Protocol, Record,
    RequestId, Scheme, Timestamp, Timings,
};

/// What stands before the caller.
#[derive(Serialize)]
struct Beginning {
    v: u32,
    time: Timestamp,
    id: RequestId,
    kind: Kind,
    outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    connection: Option<ConnectionId>,
}

/// What stands behind the caller.
#[serde_with::skip_serializing_none]
#[derive(Serialize)]
struct Rest<'a> {
    original_destination: Option<SocketAddr>,
    sni: Option<&'a str>,
    authority: Option<&'a str>,
    scheme: Option<Scheme>,
    protocol: Option<Protocol>,
    method: Option<&'a str>,
    path: Option<&'a str>,
    query: Option<&'a str>,
    truncated: Option<bool>,
    decision: Option<Decision>,
    reason: Option<&'a str>,
    rule: Option<&'a str>,
    policy: Option<&'a PolicyVersion>,
    credential: Option<&'a Credential>,
    upstream: Option<SocketAddr>,
    status: Option<u16>,
    bytes_up: u64,
    bytes_down: u64,
    timings: Timings,
    error: Option<&'a super::Error>,
    kernel: Option<KernelLoss>,
    count: Option<u64>,
}

impl Record {
    /// Appends the record as one line, newline included.
    ///
    /// # Errors
    /// Only if serde can't express a field, which no field here can cause.
    pub fn write_line(&self, line: &mut Vec<u8>) -> Result<(), Error> {
        // All fields by name: a new one that no line has does not compile.
        let Self {
            v,
            time,
            id,
            kind,
            outcome,
            connection,
            caller,
            original_destination,
            sni,
            authority,
            scheme,
            protocol,
            method,
            path,
            query,
            truncated,
            decision,
            reason,
            rule,
            policy,
            credential,
            upstream,
            status,
            bytes_up,
            bytes_down,
            timings,
            error,
            kernel,
            count,
        } = self;
        let beginning = Beginning {
            v: *v,
            time: *time,
            id: *id,
            kind: *kind,
            outcome: *outcome,
            connection: *connection,
        };
        let rest = Rest {
            original_destination: *original_destination,
            sni: sni.as_deref(),
            authority: authority.as_deref(),
            scheme: *scheme,
            protocol: *protocol,
            method: method.as_deref(),
            path: path.as_deref(),
            query: query.as_deref(),
            truncated: truncated.then_some(true),
            decision: *decision,
            reason: reason.as_deref(),
            rule: rule.as_deref(),
            policy: policy.as_deref(),
            credential: credential.as_ref(),
            upstream: *upstream,
            status: *status,
            bytes_up: *bytes_up,
            bytes_down: *bytes_down,
            timings: *timings,
            error: error.as_ref(),
            kernel: *kernel,
            count: *count,
        };
        object(&beginning, line)?;
        join(line, |line| {
            line.extend_from_slice(caller.words()?);
            Ok(())
        })?;
        join(line, |line| object(&rest, line))?;
        line.push(b'\n');
        Ok(())
    }
}

/// Appends the value as a JSON object.
pub(super) fn object(value: &impl Serialize, line: &mut Vec<u8>) -> Result<(), Error> {
    value.serialize(&mut serde_json::Serializer::with_formatter(line, Ascii))
}

/// Makes one object of the one that `line` ends with and the one that `next` appends; only the latter may be empty.
fn join(line: &mut Vec<u8>, next: impl FnOnce(&mut Vec<u8>) -> Result<(), Error>) -> Result<(), Error> {
    let seam = line.len() - 1;
    next(line)?;
    if line.get(seam + 1..) == Some(b"{}") {
        line.truncate(seam + 1);
    } else {
        line[seam] = b',';
        line.remove(seam + 1);
    }
    Ok(())
}
