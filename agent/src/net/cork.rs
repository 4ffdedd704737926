//! What one task writes is gathered, and sent when the task has done all that it can for now.
//!
//! The HTTP/2 library writes each DATA frame in two parts and flushes behind it. On a TLS connection each part is a record
//! and a send of its own; gathered they are full records (16 KiB, RFC 8446 section 5.1) and one send for several.

#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::io;
use std::mem;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are held back at most: as many as the TLS side takes at once.
pub(super) const CAPACITY: usize = 32 * 1024;
/// What is shorter is probably all that comes.
const SHORT: usize = 1024;

thread_local! {
    /// Room that is used again and again by whoever sends next: to make it anew for each send costs more than the copy.
    static ROOM: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Puts a cork on a stream.
///
/// Who polls what writes to the [`Corked`] stream does so through [`Cork::poll`]: nothing else sends what a flush only
/// promised.
pub fn cork<S>(stream: S) -> (Corked<S>, Cork<S>) {
    let gathered = Rc::new(RefCell::new(Gathered {
        stream,
        held: Vec::new(),
        sent: 0,
        unflushed: false,
        fault: None,
    }));
    (Corked(Rc::clone(&gathered)), Cork(gathered))
}

/// The stream for who writes. A flush is done at once; a shutdown sends all first.
#[derive(Debug)]
pub struct Corked<S>(Rc<RefCell<Gathered<S>>>);

/// Sends what was gathered.
#[derive(Debug)]
pub struct Cork<S>(Rc<RefCell<Gathered<S>>>);

#[derive(Debug)]
struct Gathered<S> {
    stream: S,
    held: Vec<u8>,
    /// So many of `held` are sent.
    sent: usize,
    /// The stream may hold something back itself.
    unflushed: bool,
    /// For who writes: it was told that all is well.
    fault: Option<io::Error>,
}

impl<S: AsyncWrite + Unpin> Cork<S> {
    /// Polls `writer`, which writes to the corked stream, and sends what it wrote. A failure to send is the writer's next
    /// answer from the stream.
    pub fn poll<T>(
        &self,
        cx: &mut Context<'_>,
        mut writer: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let polled = writer(cx);
        // Also behind a writer that has ended: it may have left last words.
        let sent = self.0.borrow_mut().poll_send(cx);
        match (polled, sent) {
            (Poll::Pending, Poll::Ready(Err(error))) => {
                self.0.borrow_mut().fault = Some(error);
                writer(cx)
            }
            (polled, _) => polled,
        }
    }
}

impl<S> Gathered<S> {
    fn hold(&mut self, bytes: &[u8]) {
        if self.held.capacity() == 0 {
            self.held = ROOM.take();
        }
        let room = if bytes.len() < SHORT {
            bytes.len()
        } else {
            CAPACITY
        };
        // Not exactly that much: many short writes would each make room anew.
        self.held
            .reserve(room.saturating_sub(self.held.len()).max(bytes.len()));
        self.held.extend_from_slice(bytes);
    }

    /// An idle connection holds no buffer.
    fn let_go(&mut self) {
        let mut room = mem::take(&mut self.held);
        self.sent = 0;
        room.clear();
        if room.capacity() >= CAPACITY {
            ROOM.set(room);
        }
    }

    fn check(&mut self) -> io::Result<()> {
        self.fault.take().map_or(Ok(()), Err)
    }
}

impl<S: AsyncWrite + Unpin> Gathered<S> {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.held.get(self.sent..).filter(|rest| !rest.is_empty()) {
            self.unflushed = true;
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, rest))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += written;
        }
        self.let_go();
        if self.unflushed {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Corked<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut gathered = self.0.borrow_mut();
        gathered.check()?;
        Pin::new(&mut gathered.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Corked<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut gathered = self.0.borrow_mut();
        gathered.check()?;
        if gathered.held.len() >= CAPACITY {
            ready!(gathered.poll_send(cx))?;
        }
        // Filled to the brim: full records, no stubs between them.
        let taken = bytes.get(..CAPACITY - gathered.held.len()).unwrap_or(bytes);
        gathered.hold(taken);
        Poll::Ready(Ok(taken.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.borrow_mut().check())
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut gathered = self.0.borrow_mut();
        gathered.check()?;
        ready!(gathered.poll_send(cx))?;
        Pin::new(&mut gathered.stream).poll_shutdown(cx)
    }
}
