//! Upstream connections of one data thread, kept for reuse.
//!
//! The key holds everything that two calls must not share. Nothing here retries a request: a connection that
//! turns out to be closed gives the request back unsent, or the call fails.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use foldhash::HashMap;
use http::{Request, Response};
use hyper::client::conn::http1;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::addr::{Authority, UpstreamAddr};
use crate::identity::WorkloadName;
use crate::policy::{CredentialName, Scheme};

use super::answer::AnswerBody;
use super::body::UploadBody;
use super::upstream::http2;

/// What two calls must have in common to share an upstream connection.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Key {
    /// One workload never sees another's connection state.
    pub workload: WorkloadName,
    /// Connections leave from the caller's network namespace.
    pub netns_cookie: u64,
    /// The verified name and the port.
    pub authority: Authority,
    /// TLS or plain.
    pub scheme: Scheme,
    /// The number of the roots in force when the call came: who has proven the name by others has to prove it again.
    pub roots: u64,
    /// A server may tie what it knows of a credential to the connection.
    pub credential: Option<(CredentialName, Arc<str>)>,
    /// What may be spoken to the upstream.
    pub versions: Versions,
    /// Whether it leads to a public address: a rule without `private` must not use what another rule opened.
    pub public: bool,
}

/// What may be spoken to an upstream.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum Versions {
    /// HTTP/1.1 alone: in the clear, and for WebSocket.
    Http1,
    /// HTTP/1.1, and HTTP/2 with an upstream that knows nothing else: for clients of HTTP/1.1.
    Http1First,
    /// What the upstream likes better: for clients of HTTP/2.
    Http2First,
}

/// How many idle connections are kept and for how long.
#[derive(Clone, Copy, Debug)]
pub(super) struct PoolLimits {
    /// How long a connection may wait for its next request.
    pub idle: Duration,
    /// Kept connections of one workload: one that calls ever new hosts must not use up the descriptors of all. A workload
    /// that has had more calls under way at once keeps as many: it would dial anew for each burst of them.
    pub kept_per_workload: usize,
}

/// Streams on one shared connection. Servers allow 100 or more (RFC 9113 section 6.5.2 asks them to); where one allows
/// fewer, another connection is made: the library would keep the rest, and send their heads even when their calls were over.
const STREAMS: usize = 100;

/// The connections of one data thread.
#[derive(Debug)]
pub(super) struct Pool {
    shares: RefCell<HashMap<WorkloadName, Share>>,
    limits: PoolLimits,
}

/// One workload's connections.
#[derive(Debug, Default)]
struct Share {
    entries: HashMap<Key, Rc<Entry>>,
    counts: Rc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    /// Connections that wait for their next request, or carry several.
    kept: Rc<Cell<usize>>,
    /// Connections that carry one request.
    leased: Rc<Cell<usize>>,
    /// The most of these of late.
    peak: Cell<usize>,
}

impl Counts {
    fn lease(&self) -> Counted {
        let counted = Counted::new(&self.leased);
        self.peak.set(self.peak.get().max(self.leased.get()));
        counted
    }

    /// Forgets a quarter of what was more than there is now.
    fn calm(&self) {
        let (now, peak) = (self.leased.get(), self.peak.get());
        self.peak.set(now.max(peak - peak.div_ceil(4)));
    }

    fn over(&self, least: usize) -> usize {
        self.kept.get().saturating_sub(least.max(self.peak.get()))
    }
}

#[derive(Debug)]
struct Entry {
    workload: WorkloadName,
    counts: Rc<Counts>,
    /// The one that has waited the longest is in front.
    exclusive: RefCell<VecDeque<Idle>>,
    shared: RefCell<Vec<SharedConnection>>,
    /// One dial at a time where the result can be shared.
    dialling: Semaphore,
}

impl Entry {
    fn new(workload: WorkloadName, counts: &Rc<Counts>) -> Self {
        Self {
            workload,
            counts: Rc::clone(counts),
            exclusive: RefCell::default(),
            shared: RefCell::default(),
            dialling: Semaphore::new(1),
        }
    }
}

#[derive(Debug)]
struct Idle {
    sender: http1::SendRequest<UploadBody>,
    peer: UpstreamAddr,
    since: Instant,
    #[expect(dead_code, reason = "counts the connection until it is dropped")]
    kept: Counted,
}

#[derive(Debug)]
struct SharedConnection {
    requests: http2::Requests,
    peer: UpstreamAddr,
    streams: Rc<Cell<usize>>,
    used: Cell<Instant>,
    #[expect(dead_code, reason = "counts the connection until it is dropped")]
    kept: Counted,
}

/// A connection that has just been made.
#[derive(Debug)]
pub(super) enum Dialled {
    /// One request at a time.
    Http1(http1::SendRequest<UploadBody>),
    /// Many streams.
    Http2(http2::Requests),
}

impl Pool {
    pub(super) fn new(limits: PoolLimits) -> Self {
        Self {
            shares: RefCell::default(),
            limits,
        }
    }

    /// A connection for one request: a kept one, or what `dial` makes to `peer`.
    ///
    /// # Errors
    /// Whatever `dial` answers.
    pub(super) async fn lease<E>(
        &self,
        key: &Key,
        peer: UpstreamAddr,
        dial: impl AsyncFnOnce() -> Result<Dialled, E>,
    ) -> Result<Lease, E> {
        let entry = self.entry(key);
        if let Some(lease) = self.kept(&entry).await {
            return Ok(lease);
        }
        if key.versions != Versions::Http2First {
            return Ok(self.fresh(&entry, peer, dial().await?));
        }
        let turn = entry.dialling.acquire().await;
        if let Some(lease) = self.kept(&entry).await {
            return Ok(lease);
        }
        let dialled = dial().await?;
        drop(turn);
        Ok(self.fresh(&entry, peer, dialled))
    }

    /// Keeps a connection for another request.
    pub(super) fn give_back(&self, lease: Lease) {
        let Sender::Http1(sender, _) = lease.sender else {
            return;
        };
        let entry = lease.entry;
        if sender.is_closed() {
            return;
        }
        entry.exclusive.borrow_mut().push_back(Idle {
            sender,
            peer: lease.peer,
            since: Instant::now(),
            kept: Counted::new(&entry.counts.kept),
        });
        self.bound(&entry);
    }

    /// Lets go of connections that have waited too long, and of keys without any.
    pub(super) fn sweep(&self) {
        let now = Instant::now();
        let fresh = |since: Instant| now.duration_since(since) < self.limits.idle;
        self.shares.borrow_mut().retain(|_, share| {
            share.entries.retain(|_, entry| entry.sweep(fresh));
            share.counts.calm();
            share.bound(self.limits.kept_per_workload);
            !share.entries.is_empty()
        });
    }

    /// Keeps nothing of the workload's any more that leaves from this network namespace.
    pub(super) fn forget(&self, workload: &WorkloadName, netns_cookie: u64) {
        let mut shares = self.shares.borrow_mut();
        let Some(share) = shares.get_mut(workload) else {
            return;
        };
        share.entries.retain(|key, entry| {
            let stays = key.netns_cookie != netns_cookie;
            if !stays {
                entry.exclusive.borrow_mut().clear();
                entry.shared.borrow_mut().clear();
            }
            stays
        });
    }

    fn fresh(&self, entry: &Rc<Entry>, peer: UpstreamAddr, dialled: Dialled) -> Lease {
        let lease = Lease::fresh(entry, peer, dialled);
        self.bound(entry);
        lease
    }

    fn bound(&self, entry: &Entry) {
        let most = self.limits.kept_per_workload;
        if entry.counts.over(most) > 0
            && let Some(share) = self.shares.borrow().get(&entry.workload)
        {
            share.bound(most);
        }
    }

    fn entry(&self, key: &Key) -> Rc<Entry> {
        let mut shares = self.shares.borrow_mut();
        if let Some(entry) = shares.get(&key.workload).and_then(|share| share.entries.get(key)) {
            return Rc::clone(entry);
        }
        let share = shares.entry(key.workload.clone()).or_default();
        let entry = Rc::new(Entry::new(key.workload.clone(), &share.counts));
        share.entries.insert(key.clone(), Rc::clone(&entry));
        entry
    }

    async fn kept(&self, entry: &Rc<Entry>) -> Option<Lease> {
        if let Some(lease) = entry.shared_lease() {
            return Some(lease);
        }
        loop {
            let mut idle = entry.exclusive.borrow_mut().pop_back()?;
            let fresh = idle.since.elapsed() < self.limits.idle;
            // The connection's own task may still have to note that the last answer is complete.
            if fresh && !idle.sender.is_closed() && idle.sender.ready().await.is_ok() {
                return Some(Lease {
                    entry: Rc::clone(entry),
                    sender: Sender::Http1(idle.sender, entry.counts.lease()),
                    peer: idle.peer,
                    reused: true,
                });
            }
        }
    }
}

impl Share {
    /// If it keeps too many, the connections that have been idle for the longest go.
    fn bound(&self, most: usize) {
        for _ in 0..self.counts.over(most) {
            let entries = self.entries.values();
            let idle = entries.filter_map(|entry| Some((entry.idle_since()?, entry)));
            let Some((_, oldest)) = idle.min_by_key(|(since, _)| *since) else {
                return;
            };
            oldest.drop_oldest();
        }
    }
}

impl Entry {
    /// Lets go of what has waited too long; says whether there is anything left, or somebody who uses it.
    fn sweep(self: &Rc<Self>, fresh: impl Fn(Instant) -> bool) -> bool {
        self.exclusive
            .borrow_mut()
            .retain(|idle| fresh(idle.since) && !idle.sender.is_closed());
        self.shared.borrow_mut().retain_mut(|kept| {
            !kept.requests.is_closed() && (kept.streams.get() > 0 || fresh(kept.used.get()))
        });
        Rc::strong_count(self) > 1 || !self.exclusive.borrow().is_empty() || !self.shared.borrow().is_empty()
    }

    fn shared_lease(self: &Rc<Self>) -> Option<Lease> {
        let mut shared = self.shared.borrow_mut();
        shared.retain_mut(|kept| !kept.requests.is_closed());
        let has_room = |kept: &&SharedConnection| kept.streams.get() < STREAMS.min(kept.requests.limit());
        let kept = shared.iter().find(has_room)?;
        kept.used.set(Instant::now());
        Some(Lease {
            entry: Rc::clone(self),
            sender: Sender::Http2(kept.requests.clone(), Counted::new(&kept.streams)),
            peer: kept.peer,
            reused: true,
        })
    }

    /// Since when the connection without a request that was used the longest ago has had none.
    fn idle_since(&self) -> Option<Instant> {
        let exclusive = self.exclusive.borrow().front().map(|idle| idle.since);
        let shared = self.shared.borrow();
        let shared = shared
            .iter()
            .filter(|kept| kept.streams.get() == 0)
            .map(|kept| kept.used.get());
        shared.chain(exclusive).min()
    }

    /// Lets go of that connection.
    fn drop_oldest(&self) {
        let Some(oldest) = self.idle_since() else { return };
        let mut exclusive = self.exclusive.borrow_mut();
        if exclusive.front().is_some_and(|idle| idle.since == oldest) {
            exclusive.pop_front();
            return;
        }
        let mut shared = self.shared.borrow_mut();
        let is_oldest = |kept: &SharedConnection| kept.streams.get() == 0 && kept.used.get() == oldest;
        if let Some(at) = shared.iter().position(is_oldest) {
            shared.remove(at);
        }
    }
}

/// A connection held for one request. Give it back with [`Pool::give_back`] once request and answer are
/// complete; dropping it instead closes an HTTP/1.1 connection.
#[derive(Debug)]
pub(super) struct Lease {
    entry: Rc<Entry>,
    sender: Sender,
    peer: UpstreamAddr,
    reused: bool,
}

#[derive(Debug)]
enum Sender {
    Http1(
        http1::SendRequest<UploadBody>,
        #[expect(dead_code, reason = "counts the connection until it is dropped")] Counted,
    ),
    Http2(http2::Requests, Counted),
}

/// One stream under way on a shared connection, or one connection of a workload; counted until this is dropped.
#[derive(Debug)]
struct Counted(Rc<Cell<usize>>);

impl Counted {
    fn new(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(Rc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// A request that could not be answered.
#[derive(Debug)]
pub(super) enum SendError<B = UploadBody> {
    /// The connection was closed before a byte of the request left; it may go out on another.
    Unsent(Box<Request<B>>),
    /// Some of it may have been sent: it must not be sent again.
    Failed(Failed),
}

/// How a call to an upstream broke off.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    /// Over HTTP/1.1.
    #[error(transparent)]
    Http1(hyper::Error),
    /// Over HTTP/2. As a cause, so that an HTTP/2 client's stream ends with the same code.
    #[error("{0}")]
    Http2(#[source] h2::Error),
}

impl Lease {
    fn fresh(entry: &Rc<Entry>, peer: UpstreamAddr, dialled: Dialled) -> Self {
        let sender = match dialled {
            Dialled::Http1(sender) => Sender::Http1(sender, entry.counts.lease()),
            Dialled::Http2(requests) => {
                let streams = Rc::new(Cell::new(0));
                let stream = Counted::new(&streams);
                entry.shared.borrow_mut().push(SharedConnection {
                    requests: requests.clone(),
                    peer,
                    streams,
                    used: Cell::new(Instant::now()),
                    kept: Counted::new(&entry.counts.kept),
                });
                Sender::Http2(requests, stream)
            }
        };
        Self {
            entry: Rc::clone(entry),
            sender,
            peer,
            reused: false,
        }
    }

    /// Whether the request is spoken in HTTP/2.
    pub(super) fn is_http2(&self) -> bool {
        matches!(self.sender, Sender::Http2(..))
    }

    /// Where it leads.
    pub(super) fn peer(&self) -> UpstreamAddr {
        self.peer
    }

    /// Takes the connection away from the calls to come: nothing was heard on it for too long, and a peer that is gone
    /// may never say so. Calls that are under way on it go on.
    pub(super) fn condemn(self) {
        if let Sender::Http2(_, stream) = &self.sender {
            let mut shared = self.entry.shared.borrow_mut();
            shared.retain(|kept| !Rc::ptr_eq(&kept.streams, &stream.0));
        }
    }

    /// Whether the connection has carried a request before.
    pub(super) fn reused(&self) -> bool {
        self.reused
    }

    /// Sends one request.
    ///
    /// # Errors
    /// See [`SendError`].
    pub(super) async fn send(
        &mut self,
        request: Request<UploadBody>,
    ) -> Result<Response<AnswerBody>, SendError> {
        match &mut self.sender {
            Sender::Http1(sender, _) => match sender.try_send_request(request).await {
                Ok(response) => Ok(response.map(AnswerBody::Http1)),
                Err(mut error) => Err(match error.take_message() {
                    Some(request) => SendError::Unsent(Box::new(request)),
                    None => SendError::Failed(Failed::Http1(error.into_error())),
                }),
            },
            // The upstream has lowered its limit meanwhile.
            Sender::Http2(requests, streams) if streams.0.get() > requests.limit() => {
                Err(SendError::Unsent(Box::new(request)))
            }
            Sender::Http2(requests, _) => {
                let response = requests.send(request).await?;
                Ok(response.map(AnswerBody::Http2))
            }
        }
    }
}

#[cfg(test)]
mod tests;
