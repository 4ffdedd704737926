//! Where records begin: ids, the in-flight slot, and what is said when there can be no record.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use super::inflight::{MAX_OPEN, Table};
use super::record::{
    Caller, ConnectionId, Decision, Kind, KnownCaller, MAX_PATH, Outcome, Protocol, Record, RequestId,
    Timestamp, clip, redact_query,
};
use super::recorder::Recorder;
use super::slots::{Full, Slots};
use super::writer::{Loss, Shared, Sink, Writer};
use crate::addr::Authority;
use crate::identity::WorkloadName;
use crate::policy::{DenialReason, Scheme};

/// What the operator chose.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Whether query values are kept.
    pub queries: Queries,
    /// How many calls one workload may have under way.
    pub slots_per_workload: u32,
}

/// What is kept of a query.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Queries {
    /// Keys; each value is `*`.
    #[default]
    Keys,
    /// All of it, as the client sent it.
    Verbatim,
}

/// Why a call can have no record, and so can't go out.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Unavailable {
    /// The sink fails.
    #[error("{reason}; calls are refused until it can be")]
    Sink {
        /// What the sink said.
        reason: Arc<str>,
    },
    /// The workload has as many calls under way as it may.
    #[error("the workload has {quota} calls under way, the most that it may")]
    Quota {
        /// The number that it may have.
        quota: u32,
    },
    /// The workload's own part of the table is used up, and what all share too.
    #[error("too many calls of all workloads are under way for one more of this one")]
    Table,
}

impl Unavailable {
    /// The stable word for refusals.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Sink { .. } => "audit_unavailable",
            Self::Quota { .. } | Self::Table => "limit",
        }
    }
}

/// What all calls of one connection have in common.
#[derive(Debug)]
pub struct Connection {
    /// Its id, from [`Log::connection_id`].
    pub id: ConnectionId,
    /// Who calls.
    pub caller: KnownCaller,
    /// Where the client dialled.
    pub original_destination: Option<SocketAddr>,
    /// The name in the ClientHello.
    pub sni: Option<Arc<str>>,
    /// How long identification took.
    pub identify: Option<Duration>,
    /// How long it took to see what is spoken.
    pub detect: Option<Duration>,
    /// How long TLS with the client took.
    pub handshake: Option<Duration>,
}

/// What is known when a call begins.
#[derive(Clone, Copy, Debug)]
pub struct Opening<'a> {
    /// The connection that it came on.
    pub connection: &'a Connection,
    /// [`Kind::Call`], [`Kind::Tunnel`] or [`Kind::Connection`].
    pub kind: Kind,
    /// TLS or plain.
    pub scheme: Option<Scheme>,
    /// What is spoken with the client.
    pub protocol: Option<Protocol>,
    /// Host and port that it is for.
    pub authority: Option<&'a Authority>,
    /// The method.
    pub method: Option<&'a str>,
    /// The path, without the query.
    pub path: Option<&'a str>,
    /// The query as the client sent it, without `?`.
    pub query: Option<&'a str>,
}

/// The audit log of one worker; clones are the same log.
#[derive(Clone, Debug)]
pub struct Log(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    ids: Arc<Ids>,
    settings: Settings,
}

impl Log {
    /// Starts the writer thread on `sink`.
    ///
    /// # Errors
    /// If the thread can't be started.
    pub fn start(sink: Box<dyn Sink>, table: Table, settings: Settings) -> io::Result<(Self, Writer)> {
        let slots = Slots::new(table.slots(), settings.slots_per_workload);
        let shared = Arc::new(Shared::new(table, slots));
        let ids = Arc::new(Ids::new());
        let for_losses = Arc::clone(&ids);
        let loss = Box::new(move |loss: &Loss| loss_line(&for_losses, loss));
        let writer = Writer::start(&shared, sink, loss)?;
        let inner = Inner {
            shared,
            ids,
            settings,
        };
        Ok((Self(Arc::new(inner)), writer))
    }

    /// Sets places for calls aside for each of these workloads, so that no other can take them.
    pub fn entitle(&self, workloads: impl IntoIterator<Item = WorkloadName>) {
        self.0.shared.slots().entitle(workloads);
    }

    /// Begins a call: from here on it has a record, whatever happens. Nothing may go upstream before.
    ///
    /// # Errors
    /// If there can be no record now; the call must be refused, and is counted.
    pub fn begin(&self, opening: Opening<'_>) -> Result<Recorder, Unavailable> {
        if let Some(reason) = self.0.shared.refuse() {
            return Err(Unavailable::Sink { reason });
        }
        let caller = &opening.connection.caller;
        let slot = self.0.shared.slots().take(&caller.workload);
        let slot = slot.map_err(|full| self.no_slot(full, caller))?;
        let record = Box::new(self.opened(&opening));
        with_line(|line| {
            fit(&record, MAX_OPEN, line);
            self.0.shared.table.open(slot, record.id, line);
        });
        Ok(Recorder::new(
            Arc::clone(&self.0.shared),
            slot,
            record,
            Instant::now(),
        ))
    }

    /// Counts a call, connection or question that was refused in a flood and has no record of its own: the counts make one now
    /// and then.
    pub fn count_refused(&self, workload: &Option<WorkloadName>, reason: DenialReason) {
        self.0.shared.count_over(workload, reason.code());
    }

    /// Writes a record that stands for no call of a worker: kernel refusals, direct connections.
    pub fn append(&self, record: &Record) {
        with_line(|line| {
            fit(record, usize::MAX, line);
            self.0.shared.push_loose(line);
        });
    }

    /// A record to fill for [`Log::append`], with id and time.
    #[must_use]
    pub fn record(&self, kind: Kind, caller: KnownCaller) -> Record {
        let (id, time) = self.0.ids.next();
        Record::new(kind, RequestId::from_bytes(id), time, caller)
    }

    /// An id for a connection just accepted.
    #[must_use]
    pub fn connection_id(&self) -> ConnectionId {
        ConnectionId::from_bytes(self.0.ids.next().0)
    }

    /// Goes on in another file: what is queued goes there, what is being written ends in the old one.
    pub fn reopen(&self, file: File) {
        self.0.shared.reopen(file);
    }

    /// Why calls are refused at present, if they are.
    #[must_use]
    pub fn failure(&self) -> Option<Arc<str>> {
        self.0.shared.failure()
    }

    fn no_slot(&self, full: Full, caller: &Caller) -> Unavailable {
        self.count_refused(&caller.workload, DenialReason::Limit);
        match full {
            Full::Quota => Unavailable::Quota {
                quota: self.0.settings.slots_per_workload,
            },
            Full::Table => Unavailable::Table,
        }
    }

    fn opened(&self, opening: &Opening<'_>) -> Record {
        let connection = opening.connection;
        let mut record = self.record(opening.kind, connection.caller.clone());
        record.connection = Some(connection.id);
        record.original_destination = connection.original_destination;
        record.sni.clone_from(&connection.sni);
        record.scheme = opening.scheme.map(Into::into);
        record.protocol = opening.protocol;
        record.authority = opening.authority.map(|authority| authority.to_string().into());
        record.method = opening.method.map(|method| clip(method, 64).into());
        record.path = opening.path.map(|path| clip(path, MAX_PATH).into());
        record.query = opening
            .query
            .filter(|query| !query.is_empty())
            .map(|query| self.query(query));
        let long = |text: Option<&str>| text.is_some_and(|text| text.len() > MAX_PATH);
        record.truncated = long(opening.path) || long(opening.query);
        record.timings.identify_us = connection.identify.map(micros);
        record.timings.detect_us = connection.detect.map(micros);
        record.timings.handshake_us = connection.handshake.map(micros);
        record
    }

    fn query(&self, query: &str) -> Box<str> {
        let query = clip(query, MAX_PATH);
        match self.0.settings.queries {
            Queries::Keys => redact_query(query).into(),
            Queries::Verbatim => query.into(),
        }
    }
}

pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

thread_local! {
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Lends a buffer that keeps its memory from one record to the next.
pub(super) fn with_line<R>(write: impl FnOnce(&mut Vec<u8>) -> R) -> R {
    LINE.with_borrow_mut(|line| {
        line.clear();
        write(line)
    })
}

/// Writes the record in at most `max` bytes, newline included: first as it is, then without path and query, then
/// with no more than what it can't do without.
pub(super) fn fit(record: &Record, max: usize, line: &mut Vec<u8>) {
    let mut write = |record: &Record| {
        line.clear();
        // The record's types can all be expressed in JSON.
        record.write_line(line).is_ok() && line.len() <= max
    };
    if write(record) {
        return;
    }
    let mut short = record.clone();
    (short.path, short.query, short.sni, short.truncated) = (None, None, None, true);
    if write(&short) {
        return;
    }
    let caller = Caller {
        workload: record.caller.workload.clone(),
        uid: record.caller.uid,
        pid: record.caller.pid,
        start_time: record.caller.start_time,
        ..Caller::default()
    };
    let mut least = Record::new(record.kind, record.id, record.time, caller.into());
    least.outcome = record.outcome;
    least.decision = record.decision;
    least.status = record.status;
    least.timings = record.timings;
    least.truncated = true;
    if !write(&least) {
        line.clear();
    }
}

fn loss_line(ids: &Ids, loss: &Loss) -> Vec<u8> {
    let (id, time) = ids.next();
    let caller = Caller {
        workload: loss.over.as_ref().and_then(|(workload, _)| workload.clone()),
        ..Caller::default()
    };
    let id = RequestId::from_bytes(id);
    let mut record = Record::new(Kind::Unrecorded, id, time, caller.into());
    record.outcome = Outcome::Denied;
    record.count = Some(loss.calls);
    if let Some((_, reason)) = loss.over {
        record.decision = Some(Decision::Deny);
        record.reason = Some(reason.into());
    }
    let events = loss.events;
    record.kernel = (events > 0).then_some(super::record::KernelLoss { events, map_full: 0 });
    let mut line = Vec::new();
    fit(&record, usize::MAX, &mut line);
    line
}

/// Makes UUIDv7s: the millisecond, then a counter, made unlike any other process's by random bits taken once.
#[derive(Debug)]
struct Ids {
    random: u64,
    counter: AtomicU64,
}

impl Ids {
    fn new() -> Self {
        let [random, counter] = [Uuid::now_v7(), Uuid::now_v7()].map(|id| id.as_u64_pair().1);
        Self {
            random,
            counter: AtomicU64::new(counter),
        }
    }

    fn next(&self) -> ([u8; 16], Timestamp) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let count = self.counter.fetch_add(1, Ordering::Relaxed);
        let [_, _, _, _, _, _, c1, c0] = count.to_be_bytes();
        let mut random = [c1, c0, 0, 0, 0, 0, 0, 0, 0, 0];
        random[2..].copy_from_slice(&mix(count ^ self.random).to_be_bytes());
        let millis = u64::try_from(now.as_millis()).unwrap_or(0);
        let id = uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid();
        (id.into_bytes(), Timestamp::from_unix_micros(micros(now)))
    }
}

/// A bijection that leaves no pattern to the eye (splitmix64's finaliser); ids must be unique, not secret.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests;
