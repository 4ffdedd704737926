//! Answers that an HTTP/2 client does not take, and requests that nobody takes of it.
//!
//! A stream's window can stay shut while its connection is well, and the library asks for nothing more of the answer
//! until it opens: neither the answer's body nor the connection can see that wait, or end it. The stream's task can.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::{Future, pending, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use crate::net::deadline::Silence;

use super::tracker::Watch;

/// How one stream's answer goes.
#[derive(Debug, Default)]
pub(super) struct Taking {
    /// A piece was given, and the library has not asked for the next.
    waits: Cell<bool>,
    given: Cell<u64>,
    stalled: Cell<bool>,
    call: RefCell<Option<Watch>>,
    lingering: Rc<Lingering>,
}

impl Taking {
    /// The call that the answer belongs to.
    pub(super) fn follow(&self, call: Watch) {
        *self.call.borrow_mut() = Some(call);
    }

    /// The library asks for a piece.
    pub(super) fn asked(&self) {
        self.waits.set(false);
    }

    /// It has got one.
    pub(super) fn gave(&self) {
        self.waits.set(true);
        self.given.set(self.given.get() + 1);
    }

    /// Whether the answer was ended because the client took nothing of it for too long.
    pub(super) fn has_stalled(&self) -> bool {
        self.stalled.get()
    }

    /// What nobody wants of the request is read away for a moment.
    pub(super) fn linger(&self, body: Incoming) {
        self.lingering.add(body);
    }

    fn is_over(&self) -> bool {
        self.call.borrow().as_ref().is_some_and(Watch::has_ended)
    }
}

/// Takes the streams of one connection from the library.
#[derive(Clone)]
pub(super) struct Streams {
    limit: Duration,
    begun: Rc<RefCell<Option<Rc<Taking>>>>,
    new: Rc<RefCell<Vec<Task>>>,
    lingering: Rc<Lingering>,
}

type Task = Pin<Box<dyn Future<Output = ()>>>;

impl Streams {
    /// `limit` is how long a client may take nothing.
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            limit,
            begun: Rc::default(),
            new: Rc::default(),
            lingering: Rc::default(),
        }
    }

    /// For the request that was just handed over; hyper runs its stream next.
    pub(super) fn begin(&self) -> Rc<Taking> {
        let taking = Rc::new(Taking {
            lingering: Rc::clone(&self.lingering),
            ..Taking::default()
        });
        *self.begun.borrow_mut() = Some(Rc::clone(&taking));
        taking
    }
}

/// Runs the streams of one connection within the connection's own task: what they say is sent in the same turn. Dropped
/// with the connection, it ends them.
pub(super) struct Running(FuturesUnordered<Task>);

impl Running {
    pub(super) fn new() -> Self {
        let streams: FuturesUnordered<Task> = FuturesUnordered::new();
        // Whenever it has polled as many as it has, the set asks for another turn at once: with one more that never ends it
        // does so only when there is reason to.
        streams.push(Box::pin(pending()));
        Self(streams)
    }

    /// Goes on with each stream that can, the new ones included, and with what is still read of others; to be polled
    /// before the connection and behind it.
    pub(super) fn poll(&mut self, streams: &Streams, cx: &mut Context<'_>) {
        streams.lingering.poll(cx);
        loop {
            self.0.extend(streams.new.borrow_mut().drain(..));
            while let Poll::Ready(Some(())) = self.0.poll_next_unpin(cx) {}
            if streams.new.borrow().is_empty() {
                return;
            }
        }
    }
}

/// How long, and for how many bytes, the rest of a request is read whose answer is complete. The library resets a
/// stream whose request nobody reads (RFC 9113 section 8.1), and there are clients, curl before 8 among them, that take
/// the reset for the answer when they have not sent all yet.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 256 * 1024;

/// Bodies that nobody wants, of one connection; at most one for each of its streams.
#[derive(Default)]
pub(super) struct Lingering {
    bodies: RefCell<Vec<Task>>,
    waker: RefCell<Option<Waker>>,
}

impl fmt::Debug for Lingering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lingering({})", self.bodies.borrow().len())
    }
}

impl Lingering {
    fn add(&self, body: Incoming) {
        self.bodies.borrow_mut().push(Box::pin(read_away(body)));
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// To be polled by the connection's own task, which lets go of what is done with.
    fn poll(&self, cx: &mut Context<'_>) {
        match &mut *self.waker.borrow_mut() {
            Some(known) if known.will_wake(cx.waker()) => {}
            slot => *slot = Some(cx.waker().clone()),
        }
        let mut bodies = std::mem::take(&mut *self.bodies.borrow_mut());
        bodies.retain_mut(|body| body.as_mut().poll(cx).is_pending());
        self.bodies.borrow_mut().append(&mut bodies);
    }
}

async fn read_away(mut body: Incoming) {
    let reading = async {
        let mut left = LINGER_BYTES;
        while let Some(Ok(frame)) = body.frame().await
            && let Some(rest) = left.checked_sub(frame.data_ref().map_or(0, Bytes::len))
        {
            left = rest;
        }
    };
    // Whichever comes first, the rest is not waited for.
    drop(tokio::time::timeout(LINGER, reading).await);
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future + 'static,
{
    fn execute(&self, stream: F) {
        let task: Task = match self.begun.borrow_mut().take() {
            Some(taking) => Box::pin(run(stream, taking, self.limit)),
            None => Box::pin(async { drop(stream.await) }),
        };
        self.new.borrow_mut().push(task);
    }
}

/// Runs a stream until it ends, stalls, or its call must end while it waits. Dropping it resets the stream.
async fn run<F: Future>(stream: F, taking: Rc<Taking>, limit: Duration) {
    let mut stream = pin!(stream);
    let mut silence = Silence::new(limit);
    let mut given = 0;
    poll_fn(|cx| {
        if stream.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if !taking.waits.get() {
            return Poll::Pending;
        }
        if taking.is_over() {
            return Poll::Ready(());
        }
        if taking.given.get() != given {
            given = taking.given.get();
            silence.heard();
        }
        ready!(silence.poll(cx));
        taking.stalled.set(true);
        Poll::Ready(())
    })
    .await;
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep, timeout};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn a_stream_whose_answer_is_not_taken_ends_and_one_that_waits_for_the_upstream_does_not() {
        let start = Instant::now();
        let taking = Rc::new(Taking::default());
        taking.gave();
        run(pending::<()>(), Rc::clone(&taking), LIMIT).await;
        assert_eq!((start.elapsed(), taking.has_stalled()), (LIMIT, true));
        let taking = Rc::new(Taking::default());
        taking.gave();
        taking.asked();
        let quiet = timeout(10 * LIMIT, run(pending::<()>(), Rc::clone(&taking), LIMIT)).await;
        assert!(quiet.is_err() && !taking.has_stalled());
    }

    #[tokio::test(start_paused = true)]
    async fn each_piece_that_is_taken_begins_the_wait_anew() {
        let taking = Rc::new(Taking::default());
        let slow = Rc::clone(&taking);
        let stream = async move {
            for _ in 0..10 {
                slow.gave();
                sleep(LIMIT / 2).await;
                slow.asked();
            }
        };
        run(stream, Rc::clone(&taking), LIMIT).await;
        assert!(!taking.has_stalled());
    }
}
