//! The guard that ends every call in exactly one record.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::inflight::MAX_CLOSED;
use super::log::{in_words, micros, with_line};
use super::record::{
    Credential, Decision, Error, Outcome, PolicyVersion, Protocol, Record, RequestId, Source, clip,
};
use super::writer::Shared;
use crate::policy::{Denial, Permit};

/// A point that a call passes, in this order.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Phase {
    /// Policy has answered.
    Decided,
    /// There is a connection to the upstream.
    Connected,
    /// The head of the upstream's answer is here.
    FirstByte,
}

/// One call's record in the making. Dropped without [`Recorder::finish`] (the client left, the future was
/// cancelled, a panic) it is recorded as *aborted*.
#[derive(Debug)]
pub struct Recorder {
    shared: Arc<Shared>,
    slot: u32,
    /// The record's beginning, in words; the record itself has the rest.
    beginning: Vec<u8>,
    record: Box<Record>,
    began: Instant,
    last: Instant,
}

impl Recorder {
    pub(super) fn new(
        shared: Arc<Shared>,
        slot: u32,
        beginning: Vec<u8>,
        record: Box<Record>,
        began: Instant,
    ) -> Self {
        Self {
            shared,
            slot,
            beginning,
            record,
            began,
            last: began,
        }
    }

    /// The id that a refusal tells the client.
    #[must_use]
    pub fn id(&self) -> RequestId {
        self.record.id
    }

    /// Stamps the time that has gone by since the last phase.
    pub fn reached(&mut self, phase: Phase) {
        let now = Instant::now();
        let took = Some(micros(now.duration_since(self.last)));
        self.last = now;
        match phase {
            Phase::Decided => self.record.timings.decide_us = took,
            Phase::Connected => self.record.timings.connect_us = took,
            Phase::FirstByte => self.record.timings.first_byte_us = took,
        }
    }

    /// Which policy decides.
    pub fn policy(&mut self, version: &Arc<PolicyVersion>) {
        self.record.policy = Some(Arc::clone(version));
    }

    /// Policy allowed it, or let it through in `observe` mode.
    pub fn permitted(&mut self, permit: &Permit) {
        self.record.rule = permit.rule().cloned();
        self.record.decision = Some(Decision::Allow);
        if let Some(denial) = permit.observed() {
            self.record.decision = Some(Decision::Observe);
            self.record.reason = Some(denial.reason.code().into());
            self.record.rule = denial.rule.clone();
        }
    }

    /// Policy refused it. Also sets the error's source; finish with [`Outcome::Denied`].
    pub fn denied(&mut self, denial: &Denial) {
        self.record.decision = Some(Decision::Deny);
        self.record.reason = Some(denial.reason.code().into());
        self.record.rule = denial.rule.clone();
        let (source, message) = if denial.reason.breaks_http() {
            (
                Source::Downstream,
                "the request is not readable in one way only, or not in time",
            )
        } else {
            (Source::Policy, "refused by policy")
        };
        self.error(source, denial.reason.code(), message);
    }

    /// What is spoken, where it shows later than at the beginning (gRPC, WebSocket).
    pub fn protocol(&mut self, protocol: Protocol) {
        self.record.protocol = Some(protocol);
    }

    /// A credential went on.
    pub fn credential(&mut self, name: &str, version: &Arc<str>) {
        self.record.credential = Some(Credential {
            name: name.into(),
            version: Arc::clone(version),
        });
    }

    /// The address that the agent connected to.
    pub fn upstream(&mut self, address: SocketAddr) {
        self.record.upstream = Some(address);
    }

    /// The status that the client gets.
    pub fn status(&mut self, status: u16) {
        self.record.status = Some(status);
    }

    /// More bytes went up.
    pub fn add_up(&mut self, bytes: u64) {
        self.record.bytes_up = self.record.bytes_up.saturating_add(bytes);
    }

    /// More bytes came down.
    pub fn add_down(&mut self, bytes: u64) {
        self.record.bytes_down = self.record.bytes_down.saturating_add(bytes);
    }

    /// What went wrong: a stable word, and a sentence that holds nothing secret. The first one stays: what
    /// follows is mostly its consequence.
    pub fn error(&mut self, source: Source, kind: &str, message: &str) {
        self.record.error.get_or_insert_with(|| Error {
            source,
            kind: clip(kind, 64).into(),
            message: clip(message, 512).into(),
        });
    }

    /// Ends the call with its record.
    pub fn finish(mut self, outcome: Outcome) {
        self.record.outcome = outcome;
    }
}

impl Drop for Recorder {
    /// Writes the record: the outcome is *aborted* from the beginning, and `finish` is the one to change it.
    fn drop(&mut self) {
        self.record.timings.total_us = micros(self.began.elapsed());
        let workload = self.record.caller.workload.clone();
        with_line(|line| {
            line.extend_from_slice(&self.beginning);
            in_words(line, |line| self.record.write_ending(line));
            if line.len() <= MAX_CLOSED {
                self.shared.table.close(self.slot, line);
            }
            self.shared.push(line, self.slot, workload);
        });
    }
}
