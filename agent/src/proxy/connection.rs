//! One accepted connection: the phases up to its first request, in order.
//!
//! accept -> identify -> detect -> route, then `intercept` or
//! `tunnel`; port 53 goes from identify to `questions`. A connection that ends before it carries a call leaves a record of its own.

use std::cell::{Cell, Ref, RefCell};
use std::rc::{Rc, Weak};
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::addr::{ClientAddr, HostName, OrigDst};
use crate::audit::{self, Kind, Opening};
use crate::channel::CANARY;
use crate::channel::worker::AskError;
use crate::ebpf::Origin;
use crate::identity::{Identity, WorkloadName};
use crate::net::deadline::Activity;
use crate::net::farewell;
use crate::net::listener::{Accepted, Buffers, Slot};
use crate::net::peek::{self, Detected, Replay};
use crate::policy::{self, DenialReason, Flow, Permit, Route, Scheme};
use crate::tls::client_hello::ClientHello;

use super::alert;
use super::callers::Caller;
use super::failure::Failure;
use super::intercept::Handshake;
use super::{Arriving, Carried, DataThread, questions};

/// A client's stream, its first bytes still to be read.
pub(super) type ClientStream = Replay<TcpStream>;

/// What is known of one connection; its calls share it.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) thread: Rc<DataThread>,
    pub(super) client: ClientAddr,
    pub(super) origin: Origin,
    pub(super) activity: Activity,
    /// Ends the connection with all its calls.
    pub(super) cut: CancellationToken,
    identity: RefCell<Rc<Identity>>,
    log: RefCell<audit::Connection>,
    pub(super) slot: Slot,
    /// Held by the calls under way.
    gathering: RefCell<Weak<Buffers>>,
    /// A call has begun its record.
    carried: Cell<bool>,
    /// The name that the dialled address is known to be of: asked once, not for each call.
    named: RefCell<Option<HostName>>,
    /// There until it has what the supervisor alone can give.
    arriving: RefCell<Option<Arriving>>,
}

/// A connection that a data thread has been handed.
#[derive(Debug)]
pub struct Handed {
    /// The workload whose listener took it.
    pub listener: WorkloadName,
    /// What it took.
    pub accepted: Accepted,
    /// Goes when the connection has what the supervisor alone can give, its first way upstream included.
    pub arriving: Arriving,
    /// Goes with the connection.
    pub carried: Carried,
}

/// Takes one accepted connection through its life.
pub async fn serve(thread: Rc<DataThread>, handed: Handed) {
    let Handed {
        listener,
        accepted,
        arriving,
        carried: _carried,
    } = handed;
    let caller = audit::record::Caller {
        workload: Some(listener.clone()),
        ..Default::default()
    };
    let mut log = blank(&thread, caller);
    match identify(&thread, &listener, accepted, &mut log).await {
        Ok(None) => {}
        Ok(Some((connection, stream))) => {
            connection.arriving.replace(Some(arriving));
            if let Err(failure) = run(&connection, stream).await {
                record(&thread, &connection.log(), failure);
            }
        }
        Err(failure) => unidentified_end(&thread, &listener, &log, failure),
    }
}

/// Who is refused before it is known who it is may be anybody, and may come again and again.
fn unidentified_end(thread: &DataThread, listener: &WorkloadName, log: &audit::Connection, failure: Failure) {
    let Failure::Denied(denial) = &failure else {
        return record(thread, log, failure);
    };
    if thread.shared.refusals.spend(listener, 1) {
        return record(thread, log, failure);
    }
    let audit = &thread.shared.audit;
    audit.count_refused(&Some(listener.clone()), denial.reason);
    thread.figures.ended(audit::Outcome::Denied);
}

fn blank(thread: &DataThread, caller: audit::record::Caller) -> audit::Connection {
    audit::Connection {
        id: thread.shared.audit.connection_id(),
        caller: caller.into(),
        original_destination: None,
        sni: None,
        identify: None,
        detect: None,
        handshake: None,
    }
}

/// A connection that carried no call ends in a record of its own.
fn record(thread: &DataThread, log: &audit::Connection, failure: Failure) {
    let opening = Opening {
        connection: log,
        kind: Kind::Connection,
        scheme: None,
        protocol: None,
        authority: None,
        method: None,
        path: None,
        query: None,
    };
    match thread.shared.audit.begin(opening) {
        Ok(mut recorder) => {
            recorder.policy(&thread.shared.policy.current().version);
            thread.figures.ended(failure.finish(recorder));
        }
        // As for a call: the log has said once that it fails, and the count becomes a record.
        Err(unavailable) => tracing::debug!(%unavailable, "a refused connection could not be recorded"),
    }
}

/// Who is calling: the kernel's record of this very socket, and what the supervisor can prove about it. Nobody, if it is a
/// canary.
async fn identify(
    thread: &Rc<DataThread>,
    listener: &WorkloadName,
    accepted: Accepted,
    log: &mut audit::Connection,
) -> Result<Option<(Rc<Connection>, TcpStream)>, Failure> {
    let start = Instant::now();
    let stream = accepted.stream.arrive();
    let stream = stream.map_err(|error| Failure::internal("socket", &error))?;
    let origin = origin(thread, &stream);
    if let Ok(origin) = &origin
        && is_canary(thread, listener, origin).await
    {
        return Ok(None);
    }
    let short = thread.shared.memory_short.load(Ordering::Relaxed);
    let slot = match accepted.slot {
        Ok(slot) if !short => slot,
        Ok(_) | Err(_) => return Err(Failure::denied(DenialReason::Limit)),
    };
    let origin = origin?;
    log.original_destination = Some(origin.destination());
    let asked = caller(thread, listener, &origin).await;
    let Caller { identity, record } =
        asked.map_err(|error| unidentified(thread, accepted.client, listener, &error))?;
    log.identify = Some(start.elapsed());
    log.caller = record;
    if identity.workload != *listener {
        return Err(Failure::denied(DenialReason::NotThisWorkload));
    }
    if origin.destination() == CANARY {
        return Err(Failure::denied(DenialReason::HostNotAllowed));
    }
    let connection = Connection {
        thread: Rc::clone(thread),
        client: accepted.client,
        origin,
        activity: Activity::default(),
        cut: CancellationToken::new(),
        identity: RefCell::new(identity),
        log: RefCell::new(std::mem::replace(
            log,
            blank(thread, audit::record::Caller::default()),
        )),
        slot,
        gathering: RefCell::default(),
        carried: Cell::new(false),
        named: RefCell::default(),
        arriving: RefCell::default(),
    };
    Ok(Some((Rc::new(connection), stream)))
}

/// Who is behind the kernel's record. Where rules ask for the executable, each connection is looked at for itself.
async fn caller(thread: &DataThread, listener: &WorkloadName, origin: &Origin) -> Result<Caller, AskError> {
    let enforced = thread.shared.policy.current();
    let needs = enforced
        .policy
        .workload(listener)
        .map(policy::Workload::needs)
        .unwrap_or_default();
    if !needs.exe
        && let Some(known) = thread.callers.get(origin)
    {
        return Ok(known);
    }
    let supervisor = &thread.shared.supervisor;
    let asked = supervisor
        .identify(listener, &origin.to_bytes(), needs.digest)
        .await;
    let caller = Caller::from(asked?);
    thread.callers.add(origin, &caller);
    Ok(caller)
}

/// Whether the supervisor sent it: that it came is all then, whatever the limits. If that can't be told, it did not.
async fn is_canary(thread: &DataThread, listener: &WorkloadName, origin: &Origin) -> bool {
    if origin.destination() != CANARY {
        return false;
    }
    let record = origin.to_bytes();
    let asked = thread.shared.supervisor.canary(listener, &record);
    asked.await.unwrap_or(false)
}

fn unidentified(
    thread: &DataThread,
    client: ClientAddr,
    listener: &WorkloadName,
    error: &AskError,
) -> Failure {
    if matches!(error, AskError::Limit) {
        return Failure::denied(DenialReason::Limit);
    }
    // A process can end before it is looked at, as often as it likes.
    if let Some(left_out) = thread.shared.lines.next(listener) {
        tracing::warn!(%client, workload = %listener, %error, left_out, "a caller could not be identified");
    }
    Failure::denied(DenialReason::NoOrigin)
}

fn origin(thread: &DataThread, stream: &TcpStream) -> Result<Origin, Failure> {
    match thread.shared.origins.of(stream) {
        Ok(Some(origin)) => Ok(origin),
        // Somebody who is not managed, or whose record the full map had no room for.
        Ok(None) => Err(Failure::denied(DenialReason::NoOrigin)),
        Err(error) => Err(Failure::internal("origin", &error)),
    }
}

/// The phases from the first byte on. Whatever refuses here does so before a byte leaves the host.
async fn run(connection: &Rc<Connection>, stream: TcpStream) -> Result<(), Failure> {
    if connection.original().0.port() == questions::PORT {
        connection.arrived();
        return questions::serve(connection, stream).await;
    }
    let (detected, stream) = detect(connection, stream).await?;
    match detected {
        Detected::Tls(hello) => tls(connection, hello, stream).await,
        Detected::Http1 => {
            // From wherever it comes: it leaves from the agent's own namespace.
            connection.arrived();
            super::intercept::plain(connection, stream).await;
            Ok(())
        }
        Detected::Http2 => Err(Failure::denied(DenialReason::ForbiddenForm)),
        Detected::Unknown => Err(Failure::denied(DenialReason::UnknownProtocol)),
    }
}

/// What is spoken: the first bytes, bounded and timed.
async fn detect(connection: &Connection, stream: TcpStream) -> Result<(Detected, ClientStream), Failure> {
    let start = Instant::now();
    let peeked = peek::peek(stream, connection.thread.shared.limits.peek()).await;
    connection.log.borrow_mut().detect = Some(start.elapsed());
    match peeked {
        Ok(found) => Ok(found),
        Err(unread) => {
            if unread.tls {
                farewell::send(unread.stream, &alert::of_peek(&unread.error).bytes()).await;
            }
            Err(Failure::from(&unread.error))
        }
    }
}

/// Where a TLS connection goes: its requests are read, or it passes unread. What refuses here answers with an alert.
async fn tls(connection: &Rc<Connection>, hello: ClientHello, stream: ClientStream) -> Result<(), Failure> {
    let way = way(connection, hello).await;
    if connection.is_at_home() {
        connection.arrived();
    }
    match way {
        Ok(Way::Intercept(handshake)) => super::intercept::tls(connection, handshake, stream).await,
        Ok(Way::Tunnel(permit)) => {
            // Boxed: most connections are none, and all would carry the room for it.
            Box::pin(super::tunnel::serve(connection, &permit, stream)).await;
            Ok(())
        }
        Err(failure) => {
            farewell::send(stream, &alert::of_failure(&failure).bytes()).await;
            Err(failure)
        }
    }
}

/// What is done with a TLS connection, once nothing can refuse it any more without an answer inside of TLS.
enum Way {
    Intercept(Handshake),
    Tunnel(Box<Permit>),
}

async fn way(connection: &Connection, hello: ClientHello) -> Result<Way, Failure> {
    let host = hello.sni.ok_or_else(|| Failure::denied(DenialReason::NoName))?;
    connection.log.borrow_mut().sni = Some(host.as_str().into());
    let enforced = connection.thread.shared.policy.current();
    let flow = Flow {
        port: connection.original().0.port(),
        host: &host,
        scheme: Scheme::Https,
    };
    match policy::engine::route(&enforced.policy, &connection.identity(), &flow) {
        Ok(Route::Intercept) => Handshake::prepare(connection, host, hello.alpn)
            .await
            .map(Way::Intercept),
        Ok(Route::Tunnel(permit)) => Ok(Way::Tunnel(Box::new(permit))),
        Err(denial) => Err(Failure::Denied(denial)),
    }
}

impl Connection {
    /// Where the client dialled.
    pub(super) fn original(&self) -> OrigDst {
        OrigDst(self.origin.destination())
    }

    /// Whether the dialled address is one of this name's.
    pub(super) fn is_named(&self, host: &HostName) -> bool {
        self.named.borrow().as_ref() == Some(host)
    }

    /// The dialled address is one of this name's.
    pub(super) fn name(&self, host: &HostName) {
        *self.named.borrow_mut() = Some(host.clone());
    }

    /// The caller as last proven.
    pub(super) fn identity(&self) -> Rc<Identity> {
        Rc::clone(&self.identity.borrow())
    }

    /// The caller has become another program.
    pub(super) fn reidentified(&self, identity: Identity) {
        let Caller { identity, record } = identity.into();
        self.log.borrow_mut().caller = record;
        *self.identity.borrow_mut() = identity;
    }

    /// How long TLS with the client took.
    pub(super) fn shook_hands(&self, took: Duration) {
        self.log.borrow_mut().handshake = Some(took);
    }

    /// What the records of this connection's calls have in common.
    pub(super) fn log(&self) -> Ref<'_, audit::Connection> {
        self.log.borrow()
    }

    /// A call has begun its record: the connection's own phases stand in the first one's alone.
    pub(super) fn begun(&self) {
        let mut log = self.log.borrow_mut();
        (log.identify, log.detect, log.handshake) = (None, None, None);
        self.carried.set(true);
    }

    /// Buffers for what HTTP/2 gathers before it is sent, which the calls under way share; `None`: the workload holds too
    /// many.
    pub(super) fn gathering(&self) -> Option<Rc<Buffers>> {
        let mut shared = self.gathering.borrow_mut();
        if let Some(held) = shared.upgrade() {
            return Some(held);
        }
        let held = Rc::new(self.slot.buffers()?);
        *shared = Rc::downgrade(&held);
        Some(held)
    }

    /// Whether the client is in the agent's own network namespace. For one that is not, the supervisor makes the sockets
    /// that go upstream.
    pub(super) fn is_at_home(&self) -> bool {
        self.origin.netns_cookie() == self.thread.shared.netns
    }

    /// It has what the supervisor alone can give: a supervisor that leaves need not wait for it.
    pub(super) fn arrived(&self) {
        self.arriving.take();
    }

    /// Whether a call has begun its record.
    pub(super) fn has_carried(&self) -> bool {
        self.carried.get()
    }
}
