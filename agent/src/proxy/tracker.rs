//! Live calls of one data thread, re-decided when the policy changes.
//!
//! A call registers before it is first decided, so that no change of the policy can fall between the
//! decision and the registration.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use pin_project_lite::pin_project;
use slab::Slab;
use tokio_util::sync::CancellationToken;

/// The calls under way on one data thread.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    calls: RefCell<Slab<Rc<Live>>>,
}

/// Asks the current policy about a call again: whether it still may go on.
pub(super) type StillAllowed = Box<dyn Fn() -> bool>;

/// Why a live call must end before its time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum End {
    /// The policy no longer allows it.
    Revoked,
    /// The worker ends.
    CutOff,
}

struct Live {
    connection: CancellationToken,
    ended: Cell<Option<End>>,
    waker: RefCell<Option<Waker>>,
    still_allowed: RefCell<Option<StillAllowed>>,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live")
            .field("ended", &self.ended.get())
            .finish_non_exhaustive()
    }
}

/// One live call's registration; dropping it ends it.
#[derive(Debug)]
pub(super) struct Registration {
    tracker: Rc<Tracker>,
    key: usize,
    live: Rc<Live>,
}

impl Tracker {
    /// Registers a call that is about to be decided; `connection` ends the client's connection.
    pub(super) fn register(self: &Rc<Self>, connection: &CancellationToken) -> Registration {
        let live = Rc::new(Live {
            connection: connection.clone(),
            ended: Cell::new(None),
            waker: RefCell::new(None),
            still_allowed: RefCell::new(None),
        });
        let key = self.calls.borrow_mut().insert(Rc::clone(&live));
        Registration {
            tracker: Rc::clone(self),
            key,
            live,
        }
    }

    /// Puts every live call to the current policy; those that it no longer allows are revoked. Says whether some were.
    pub(super) fn redecide(&self) -> bool {
        let mut revoked = false;
        let calls: Vec<Rc<Live>> = self
            .calls
            .borrow()
            .iter()
            .map(|(_, live)| Rc::clone(live))
            .collect();
        for live in calls {
            let denied = live
                .still_allowed
                .borrow()
                .as_ref()
                .is_some_and(|allowed| !allowed());
            if denied {
                live.end(End::Revoked);
                revoked = true;
            }
        }
        revoked
    }

    /// Ends the connections of revoked calls that are still there: their clients take nothing, so that nobody asks for
    /// more of the answer, which is when a call sees that it must end.
    pub(super) fn break_off(&self) {
        let calls = self.calls.borrow();
        let revoked = calls
            .iter()
            .filter(|(_, live)| live.ended.get() == Some(End::Revoked));
        revoked.for_each(|(_, live)| live.connection.cancel());
    }

    /// How many calls are under way.
    pub(super) fn len(&self) -> usize {
        self.calls.borrow().len()
    }

    /// Ends every call: the drain's deadline has passed.
    pub(super) fn cut_off(&self) {
        self.calls
            .borrow()
            .iter()
            .for_each(|(_, live)| live.end(End::CutOff));
    }
}

impl Live {
    fn end(&self, end: End) {
        // What policy forbade stays forbidden, whatever ends the call after that.
        self.ended.set(self.ended.get().or(Some(end)));
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// Sees from outside whether a call must end.
#[derive(Clone, Debug)]
pub(super) struct Watch(Rc<Live>);

impl Watch {
    /// Whether it must.
    pub(super) fn has_ended(&self) -> bool {
        self.0.ended.get().is_some()
    }
}

impl Registration {
    /// For who waits for something else meanwhile.
    pub(super) fn watch(&self) -> Watch {
        Watch(Rc::clone(&self.live))
    }

    /// Why the call must end now, if it must.
    pub(super) fn end(&self) -> Option<End> {
        self.live.ended.get()
    }

    /// Says how to put this call to the policy again.
    pub(super) fn decided(&self, still_allowed: StillAllowed) {
        *self.live.still_allowed.borrow_mut() = Some(still_allowed);
    }

    /// Why the call must end now; if it need not, the task is woken when it must.
    pub(super) fn ended(&self, cx: &Context<'_>) -> Option<End> {
        if let Some(end) = self.live.ended.get() {
            return Some(end);
        }
        let mut waker = self.live.waker.borrow_mut();
        match &mut *waker {
            Some(known) if known.will_wake(cx.waker()) => {}
            slot => *slot = Some(cx.waker().clone()),
        }
        None
    }

    /// Waits until the call must end.
    pub(super) async fn until_ended(&self) -> End {
        std::future::poll_fn(|cx| self.ended(cx).map_or(Poll::Pending, Poll::Ready)).await
    }

    /// Does the work as long as the call may go on: work that has not begun when the call must end never begins, so
    /// that nothing of a call goes out that was revoked while it waited for something else.
    ///
    /// # Errors
    /// Why the call must end.
    pub(super) fn unless_ended<W: Future>(&self, work: W) -> UnlessEnded<'_, W> {
        UnlessEnded {
            registration: self,
            work,
        }
    }
}

pin_project! {
    /// Work that ends when its call must. By hand: an async function would have room for the work twice.
    pub(super) struct UnlessEnded<'a, W> {
        registration: &'a Registration,
        #[pin]
        work: W,
    }
}

impl<W: Future> Future for UnlessEnded<'_, W> {
    type Output = Result<W::Output, End>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(end) = self.registration.ended(cx) {
            return Poll::Ready(Err(end));
        }
        self.project().work.poll(cx).map(Ok)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.tracker.calls.borrow_mut().remove(self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_revoked_before_it_began_never_begins() {
        let tracker = Rc::new(Tracker::default());
        let registration = tracker.register(&CancellationToken::new());
        assert_eq!(registration.unless_ended(async { 1 }).await, Ok(1));
        registration.decided(Box::new(|| true));
        assert!(!tracker.redecide());
        assert_eq!(registration.unless_ended(async { 2 }).await, Ok(2));
        registration.decided(Box::new(|| false));
        assert!(tracker.redecide());
        let begun = Cell::new(false);
        let work = async { begun.set(true) };
        assert_eq!(registration.unless_ended(work).await, Err(End::Revoked));
        assert!(!begun.get());
    }

    #[test]
    fn only_the_connections_of_revoked_calls_are_broken_off() {
        let tracker = Rc::new(Tracker::default());
        let (kept, revoked) = (CancellationToken::new(), CancellationToken::new());
        let calls = [&kept, &revoked, &revoked].map(|connection| tracker.register(connection));
        calls[0].decided(Box::new(|| true));
        calls[1].decided(Box::new(|| false));
        assert!(tracker.redecide());
        assert!(!revoked.is_cancelled(), "it may end by itself first");
        tracker.break_off();
        assert_eq!((kept.is_cancelled(), revoked.is_cancelled()), (false, true));
        assert_eq!(calls[1].end(), Some(End::Revoked));
    }

    #[tokio::test]
    async fn work_under_way_ends_with_its_call() {
        let tracker = Rc::new(Tracker::default());
        let registration = tracker.register(&CancellationToken::new());
        let work = registration.unless_ended(std::future::pending::<()>());
        let cut = async { tracker.cut_off() };
        assert_eq!(tokio::join!(work, cut).0, Err(End::CutOff));
        drop(registration);
        assert_eq!(tracker.len(), 0);
    }
}
