//! How much of an answer waits for its client at one time.
//!
//! hyper has one limit for what an HTTP/1 connection reads ahead and for what it has yet to write, and that is a head's
//! size; and a piece of a body keeps the whole buffer that it was read into. So pieces are counted here, and the next one
//! is given once those before it have gone to TLS.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};

/// Bytes on their way with which no more are given: a full TLS record. Small pieces still go out together.
const ENOUGH: usize = 16 * 1024;

/// The pieces of one answer that are on their way.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    bytes: Cell<usize>,
    waits: RefCell<Option<Waker>>,
}

impl Ahead {
    /// Ready when there is room for a piece.
    pub(super) fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        if self.bytes.get() < ENOUGH {
            return Poll::Ready(());
        }
        *self.waits.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Counts these bytes for as long as the piece is there.
    pub(super) fn piece(self: &Rc<Self>, bytes: Bytes) -> Piece {
        self.bytes.set(self.bytes.get() + bytes.len());
        Piece {
            counted: Some((bytes.len(), Rc::clone(self))),
            bytes,
        }
    }
}

/// A piece of an answer.
#[derive(Debug)]
pub(super) struct Piece {
    bytes: Bytes,
    counted: Option<(usize, Rc<Ahead>)>,
}

/// One that nobody counts: all that there is, or what HTTP/2 has limits of its own for.
impl From<Bytes> for Piece {
    fn from(bytes: Bytes) -> Self {
        Self { bytes, counted: None }
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let Some((bytes, ahead)) = self.counted.take() else {
            return;
        };
        ahead.bytes.set(ahead.bytes.get().saturating_sub(bytes));
        if let Some(waits) = ahead.waits.take() {
            waits.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_full_record_holds_back_what_follows_until_it_is_gone() {
        let (ahead, woken) = (Rc::new(Ahead::default()), Arc::new(Woken::default()));
        let waker = Waker::from(Arc::clone(&woken));
        let cx = Context::from_waker(&waker);
        let small = ahead.piece(Bytes::from_static(&[0; ENOUGH - 1]));
        assert!(ahead.poll_room(&cx).is_ready());
        let mut next = ahead.piece(Bytes::from_static(b"more"));
        assert!(ahead.poll_room(&cx).is_pending());
        // A part of it that is sent still holds the buffer.
        next.advance(3);
        assert_eq!(next.chunk(), b"e");
        assert!(ahead.poll_room(&cx).is_pending());
        assert_eq!(woken.0.load(Ordering::Relaxed), 0);
        drop(next);
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert!(ahead.poll_room(&cx).is_ready());
        drop(small);
        assert_eq!(ahead.bytes.get(), 0);
    }

    #[test]
    fn a_piece_that_is_not_counted_holds_back_nothing() {
        let piece = Piece::from(Bytes::from_static(b"all of it"));
        assert_eq!((piece.remaining(), piece.chunk()), (9, b"all of it".as_slice()));
    }
}
