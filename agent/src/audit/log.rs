//! Where records begin: ids, the in-flight slot, and what is said when there can be no record.

use std::borrow::Cow;
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
    Beginning, Caller, ConnectionId, Decision, Kind, KnownCaller, MAX_PATH, Outcome, Protocol, Record,
    RequestId, Timestamp, Timings, clip, redact_query,
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

impl Connection {
    fn timings(&self) -> Timings {
        Timings {
            identify_us: self.identify.map(micros),
            detect_us: self.detect.map(micros),
            handshake_us: self.handshake.map(micros),
            ..Timings::default()
        }
    }
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
        let (id, time) = self.0.ids.next();
        let mut record = Box::new(Record::new(
            opening.kind,
            RequestId::from_bytes(id),
            time,
            caller.clone(),
        ));
        record.protocol = opening.protocol;
        record.timings = opening.connection.timings();
        let beginning = self.open(&opening, &record, slot);
        let shared = Arc::clone(&self.0.shared);
        Ok(Recorder::new(shared, slot, beginning, record, Instant::now()))
    }

    /// Counts a call, connection or question that was refused in a flood and has no record of its own: the counts make one now
    /// and then.
    pub fn count_refused(&self, workload: &Option<WorkloadName>, reason: DenialReason) {
        self.0.shared.count_over(workload, reason.code());
    }

    /// Writes a record that stands for no call of a worker: kernel refusals, direct connections.
    pub fn append(&self, record: &Record) {
        with_line(|line| {
            in_words(line, |line| record.write_line(line));
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

    /// Gives the memory of the table of calls under way back until it is touched again.
    pub fn unmap(&self) {
        self.0.shared.table.unmap();
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

    /// Puts what is known now into the table of calls under way, and gives it in words.
    fn open(&self, opening: &Opening<'_>, record: &Record, slot: u32) -> Vec<u8> {
        let connection = opening.connection;
        let authority = opening.authority.map(ToString::to_string);
        let asked = opening.query.filter(|query| !query.is_empty());
        let query = asked.map(|query| self.query(query));
        let long = |text: Option<&str>| text.is_some_and(|text| text.len() > MAX_PATH);
        let beginning = Beginning {
            v: record.v,
            time: record.time,
            id: record.id,
            kind: record.kind,
            connection: Some(connection.id),
            original_destination: connection.original_destination,
            sni: connection.sni.as_deref(),
            authority: authority.as_deref(),
            scheme: opening.scheme.map(Into::into),
            method: opening.method.map(|method| clip(method, 64)),
            path: opening.path.map(|path| clip(path, MAX_PATH)),
            query: query.as_deref(),
            truncated: (long(opening.path) || long(opening.query)).then_some(true),
        };
        let mut words = Vec::with_capacity(1024);
        in_words(&mut words, |words| beginning.write(&connection.caller, words));
        with_line(|line| {
            line.extend_from_slice(&words);
            in_words(line, |line| record.write_unended(line));
            if line.len() > MAX_OPEN {
                shorten(&beginning, record, line);
            }
            self.0.shared.table.open(slot, record.id, line);
        });
        words
    }

    fn query<'q>(&self, query: &'q str) -> Cow<'q, str> {
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

/// Records can all be expressed in JSON; one that could not would leave nothing rather than half a line.
pub(super) fn in_words(
    line: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), serde_json::Error>,
) {
    if write(line).is_err() {
        line.clear();
    }
}

/// Writes what stands in the table of calls under way in at most [`MAX_OPEN`] bytes: without path, query and name, then
/// with no more of the caller than it can't do without.
fn shorten(beginning: &Beginning<'_>, record: &Record, line: &mut Vec<u8>) {
    let known = &record.caller;
    let least = Caller {
        workload: known.workload.clone(),
        uid: known.uid,
        pid: known.pid,
        start_time: known.start_time,
        ..Caller::default()
    };
    let short = Beginning {
        path: None,
        query: None,
        sni: None,
        truncated: Some(true),
        ..*beginning
    };
    for caller in [known, &least.into()] {
        line.clear();
        in_words(line, |line| {
            short.write(caller, line)?;
            record.write_unended(line)
        });
        if line.len() <= MAX_OPEN {
            return;
        }
    }
    line.clear();
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
    in_words(&mut line, |line| record.write_line(line));
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
