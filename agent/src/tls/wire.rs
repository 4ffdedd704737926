//! The stream below TLS, used in fewer and cheaper calls than rustls asks for.
//!
//! rustls reads 4 KiB at a time, so that a large record would be five reads of the socket; and it writes a list of pieces,
//! mostly of one, which costs the kernel more than the piece alone.

#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What one read takes at most: a record of the largest size (16 KiB and 22 bytes, RFC 8446 section 5.2) and the next
/// one's beginning. A reader that stalls may hold as much.
const MOST: usize = 20 * 1024;

thread_local! {
    /// Room for the next read of whichever stream; a stream keeps it until all that came is given out.
    static ROOM: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A stream that is read in large pieces; only what was not asked for yet is held. What is written goes on at once.
#[derive(Debug)]
pub struct Wire<S> {
    stream: S,
    held: Vec<u8>,
    came: usize,
    given: usize,
}

impl<S> Wire<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            held: Vec::new(),
            came: 0,
            given: 0,
        }
    }

    /// Gives out what is held, as far as there is room.
    fn give(&mut self, buf: &mut ReadBuf<'_>) {
        let rest = self.held.get(self.given..self.came).unwrap_or_default();
        let count = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..count]);
        self.given += count;
        if self.given == self.came {
            // An idle connection holds no buffer.
            ROOM.set(mem::take(&mut self.held));
        }
    }
}

impl<S: AsyncRead + Unpin> Wire<S> {
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut room = ROOM.take();
        room.resize(MOST, 0);
        let mut read = ReadBuf::new(&mut room);
        let polled = Pin::new(&mut self.stream).poll_read(cx, &mut read);
        (self.came, self.given) = (read.filled().len(), 0);
        if matches!(polled, Poll::Ready(Ok(()))) {
            self.held = room;
        } else {
            ROOM.set(room);
        }
        polled
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.given == self.came {
            ready!(self.poll_fill(cx))?;
        }
        self.give(buf);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match bytes {
            [alone] => Pin::new(&mut self.stream).poll_write(cx, alone),
            _ => Pin::new(&mut self.stream).poll_write_vectored(cx, bytes),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
