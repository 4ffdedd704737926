//! A record as its line: one JSON object, made in two parts. What is known when a call begins is put into words once,
//! and stands in the table of calls under way as in the log.

use std::net::SocketAddr;

use serde::Serialize;
use serde_json::Error;

use super::text::Ascii;
use super::{
    ConnectionId, Credential, Decision, KernelLoss, Kind, KnownCaller, Outcome, PolicyVersion, Protocol,
    Record, RequestId, Scheme, Timestamp, Timings,
};

/// What is known when a call begins, beside the caller.
#[derive(Clone, Copy, Debug, Serialize)]
pub(in crate::audit) struct Beginning<'a> {
    pub(in crate::audit) v: u32,
    pub(in crate::audit) time: Timestamp,
    pub(in crate::audit) id: RequestId,
    pub(in crate::audit) kind: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::audit) connection: Option<ConnectionId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::audit) original_destination: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::audit) sni: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::audit) authority: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::audit) scheme: Option<Scheme>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::audit) method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::audit) path: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::audit) query: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::audit) truncated: Option<bool>,
}

impl Beginning<'_> {
    /// Appends it, with the caller: a JSON object that is still open, for [`Record::write_ending`].
    pub(in crate::audit) fn write(&self, caller: &KnownCaller, line: &mut Vec<u8>) -> Result<(), Error> {
        let caller = caller.words(|caller| {
            let mut words = Vec::new();
            object(caller, &mut words).map(|()| words.into_boxed_slice())
        })?;
        object(self, line)?;
        line.pop();
        let fields = caller
            .strip_prefix(b"{")
            .and_then(|caller| caller.strip_suffix(b"}"));
        if let Some(fields) = fields.filter(|fields| !fields.is_empty()) {
            line.push(b',');
            line.extend_from_slice(fields);
        }
        Ok(())
    }
}

/// What is known when it ends.
#[derive(Debug, Serialize)]
struct Ending<'a> {
    outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<Protocol>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decision: Option<Decision>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'a PolicyVersion>,
    #[serde(skip_serializing_if = "Option::is_none")]
    credential: Option<&'a Credential>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    bytes_up: u64,
    bytes_down: u64,
    timings: Timings,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a super::Error>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel: Option<KernelLoss>,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
}

/// As [`Ending`], of a call that has none yet.
#[derive(Debug, Serialize)]
struct Unended {
    outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<Protocol>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<Timings>,
}

impl Record {
    /// Appends the record as one line, newline included.
    ///
    /// # Errors
    /// Only if serde can't express a field, which no field here can cause.
    pub fn write_line(&self, line: &mut Vec<u8>) -> Result<(), Error> {
        self.beginning().write(&self.caller, line)?;
        self.write_ending(line)
    }

    /// Closes the object that [`Beginning::write`] left open.
    pub(in crate::audit) fn write_ending(&self, line: &mut Vec<u8>) -> Result<(), Error> {
        close(&self.ending(), line)
    }

    /// The same for a call that has just begun: what it can't have yet is left out.
    pub(in crate::audit) fn write_unended(&self, line: &mut Vec<u8>) -> Result<(), Error> {
        let unended = Unended {
            outcome: self.outcome,
            protocol: self.protocol,
            timings: (self.timings != Timings::default()).then_some(self.timings),
        };
        close(&unended, line)
    }

    pub(super) fn beginning(&self) -> Beginning<'_> {
        Beginning {
            v: self.v,
            time: self.time,
            id: self.id,
            kind: self.kind,
            connection: self.connection,
            original_destination: self.original_destination,
            sni: self.sni.as_deref(),
            authority: self.authority.as_deref(),
            scheme: self.scheme,
            method: self.method.as_deref(),
            path: self.path.as_deref(),
            query: self.query.as_deref(),
            truncated: self.truncated.then_some(true),
        }
    }

    fn ending(&self) -> Ending<'_> {
        Ending {
            outcome: self.outcome,
            protocol: self.protocol,
            decision: self.decision,
            reason: self.reason.as_deref(),
            rule: self.rule.as_deref(),
            policy: self.policy.as_deref(),
            credential: self.credential.as_ref(),
            upstream: self.upstream,
            status: self.status,
            bytes_up: self.bytes_up,
            bytes_down: self.bytes_down,
            timings: self.timings,
            error: self.error.as_ref(),
            kernel: self.kernel,
            count: self.count,
        }
    }
}

/// Appends the fields of an object to one that is open, and closes it.
fn close(fields: &impl Serialize, line: &mut Vec<u8>) -> Result<(), Error> {
    let seam = line.len();
    object(fields, line)?;
    line[seam] = b',';
    line.push(b'\n');
    Ok(())
}

fn object(value: &impl Serialize, line: &mut Vec<u8>) -> Result<(), Error> {
    value.serialize(&mut serde_json::Serializer::with_formatter(line, Ascii))
}
