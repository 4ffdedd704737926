//! Live calls of one data thread, re-decided when the policy changes.
//!
//! A call registers before it is first decided, so that no change of the policy can fall between the
//! decision and the registration.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};

use slab::Slab;

/// The calls under way on one data thread.
#[derive(Debug, Default)]
pub(crate) struct Tracker {
    calls: RefCell<Slab<Rc<Live>>>,
}

/// Asks the current policy about a call again: whether it still may go on.
pub(crate) type StillAllowed = Box<dyn Fn() -> bool>;

struct Live {
    revoked: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    still_allowed: RefCell<Option<StillAllowed>>,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("revoked", &self.revoked.get()).finish_non_exhaustive()
    }
}

/// One live call's registration; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Registration {
    tracker: Rc<Tracker>,
    key: usize,
    live: Rc<Live>,
}

impl Tracker {
    /// Registers a call that is about to be decided.
    pub(crate) fn register(self: &Rc<Self>) -> Registration {
        let live = Rc::new(Live {
            revoked: Cell::new(false),
            waker: RefCell::new(None),
            still_allowed: RefCell::new(None),
        });
        let key = self.calls.borrow_mut().insert(Rc::clone(&live));
        Registration { tracker: Rc::clone(self), key, live }
    }

    /// Puts every live call to the current policy; those that it no longer allows are revoked.
    pub(crate) fn redecide(&self) {
        let calls: Vec<Rc<Live>> = self.calls.borrow().iter().map(|(_, live)| Rc::clone(live)).collect();
        for live in calls {
            let denied = live.still_allowed.borrow().as_ref().is_some_and(|allowed| !allowed());
            if denied {
                live.revoke();
            }
        }
    }

    /// How many calls are under way.
    pub(crate) fn len(&self) -> usize {
        self.calls.borrow().len()
    }

    /// Revokes every call: the drain's deadline has passed.
    pub(crate) fn revoke_all(&self) {
        self.calls.borrow().iter().for_each(|(_, live)| live.revoke());
    }
}

impl Live {
    fn revoke(&self) {
        self.revoked.set(true);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

impl Registration {
    /// Says how to put this call to the policy again.
    pub(crate) fn decided(&self, still_allowed: StillAllowed) {
        *self.live.still_allowed.borrow_mut() = Some(still_allowed);
    }

    /// Whether the call was revoked; if not, the task is woken when it is.
    pub(crate) fn is_revoked(&self, cx: &Context<'_>) -> bool {
        if self.live.revoked.get() {
            return true;
        }
        let mut waker = self.live.waker.borrow_mut();
        match &mut *waker {
            Some(known) if known.will_wake(cx.waker()) => {}
            slot => *slot = Some(cx.waker().clone()),
        }
        false
    }

    /// Ends when the call is revoked.
    pub(crate) async fn revoked(&self) {
        std::future::poll_fn(|cx| {
            if self.is_revoked(cx) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.tracker.calls.borrow_mut().remove(self.key);
    }
}
