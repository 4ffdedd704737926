//! The stream below TLS, used in fewer and cheaper calls than rustls asks for.
//!
//! rustls reads 4 KiB at a time, so that a large record would be five reads of the socket; and it writes a list of pieces,
//! mostly of one, which costs the kernel more than the piece alone.

#[cfg(test)]
mod tests;

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What one read takes at most: a record of the largest size (16 KiB and 22 bytes, RFC 8446 section 5.2) and the next
/// one's beginning. More would be held for each reader that stalls.
const MOST: usize = 20 * 1024;

/// A stream that is read in large pieces; only what was not asked for yet is held. What is written goes on at once.
#[derive(Debug)]
pub struct Wire<S> {
    stream: S,
    held: Vec<u8>,
    given: usize,
}

impl<S> Wire<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            held: Vec::new(),
            given: 0,
        }
    }

    /// Gives out what is held, as far as there is room.
    fn give(&mut self, buf: &mut ReadBuf<'_>) {
        let rest = self.held.get(self.given..).unwrap_or_default();
        let count = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..count]);
        self.given += count;
        if self.given == self.held.len() {
            // Not kept: an idle connection shall hold no buffer.
            (self.held, self.given) = (Vec::new(), 0);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.held.is_empty() {
            let mut room = [const { MaybeUninit::<u8>::uninit() }; MOST];
            let mut read = ReadBuf::uninit(&mut room);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut read))?;
            let came = read.filled();
            let (now, later) = came.split_at(came.len().min(buf.remaining()));
            buf.put_slice(now);
            this.held.extend_from_slice(later);
        } else {
            this.give(buf);
        }
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
