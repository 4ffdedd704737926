//! Answers that an HTTP/2 client does not take.
//!
//! A stream's window can stay shut while its connection is well, and the library asks for nothing more of the answer
//! until it opens: neither the answer's body nor the connection can see that wait, or end it. The stream's task can.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, ready};
use std::time::Duration;

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

    fn is_over(&self) -> bool {
        self.call.borrow().as_ref().is_some_and(Watch::has_ended)
    }
}

/// Runs the streams of one connection on its own data thread, and ends those that stall.
#[derive(Clone, Debug)]
pub(super) struct Streams {
    limit: Duration,
    begun: Rc<RefCell<Option<Rc<Taking>>>>,
}

impl Streams {
    /// `limit` is how long a client may take nothing.
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            limit,
            begun: Rc::default(),
        }
    }

    /// For the request that was just handed over; hyper runs its stream next.
    pub(super) fn begin(&self) -> Rc<Taking> {
        let taking = Rc::new(Taking::default());
        *self.begun.borrow_mut() = Some(Rc::clone(&taking));
        taking
    }
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future + 'static,
{
    fn execute(&self, stream: F) {
        match self.begun.borrow_mut().take() {
            Some(taking) => tokio::task::spawn_local(run(stream, taking, self.limit)),
            None => tokio::task::spawn_local(async { drop(stream.await) }),
        };
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
