//! Live calls of one data thread, re-decided when the policy changes.
//!
//! A call registers before it is first decided, so that no change of the policy can fall between the
//! decision and the registration.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use slab::Slab;

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
    /// Registers a call that is about to be decided.
    pub(super) fn register(self: &Rc<Self>) -> Registration {
        let live = Rc::new(Live {
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

    /// Puts every live call to the current policy; those that it no longer allows are revoked.
    pub(super) fn redecide(&self) {
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
            }
        }
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
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.tracker.calls.borrow_mut().remove(self.key);
    }
}
