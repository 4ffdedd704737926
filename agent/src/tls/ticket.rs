//! A session ticket on its way to a client: it goes out with the first answer, not by itself.
//!
//! rustls writes the ticket of TLS 1.3 as soon as the handshake is done. No client waits for it (a server may send it at any
//! time, RFC 8446 section 4.6.1), and a packet of its own costs as much as the answer's.

#[cfg(test)]
mod tests;

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How an encrypted record of TLS 1.3 begins (RFC 8446 section 5.2).
const ENCRYPTED: u8 = 23;
/// Alerts and key updates are shorter, tickets longer.
const SHORT: usize = 64;

/// A stream below TLS that keeps the ticket back.
#[derive(Debug)]
pub struct Late<S> {
    stream: S,
    handshake: bool,
    held: Vec<u8>,
    /// Behind the ticket came what has to go now.
    going: bool,
}

impl<S> Late<S> {
    /// `stream` is at the beginning of a handshake.
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            handshake: true,
            held: Vec::new(),
            going: false,
        }
    }

    /// What is written from here on is no ticket.
    pub(super) fn shook_hands(&mut self) {
        self.handshake = false;
    }

    /// Takes in the ticket, and what comes right behind it.
    fn take_in(&mut self, pieces: &[IoSlice<'_>]) -> Option<usize> {
        let is_behind = !self.held.is_empty() && !self.going;
        let is_held_back = is_behind || (self.handshake && is_ticket(pieces));
        if !is_held_back {
            return None;
        }
        let before = self.held.len();
        for piece in pieces {
            self.held.extend_from_slice(piece);
        }
        self.going = is_behind;
        Some(self.held.len() - before)
    }
}

/// One whole record, alone: whatever else there is to say (that the client's next record is bad) goes at once. In a handshake
/// of TLS 1.3 each flight of the server begins in the clear, and in one of TLS 1.2 no record is application data.
fn is_ticket(pieces: &[IoSlice<'_>]) -> bool {
    let [record] = pieces else { return false };
    let [ENCRYPTED, _, _, high, low, rest @ ..] = &record[..] else {
        return false;
    };
    rest.len() == usize::from(u16::from_be_bytes([*high, *low])) && rest.len() > SHORT
}

impl<S: AsyncWrite + Unpin> Late<S> {
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.going {
            let count = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.held))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held.drain(..count);
            self.going = !self.held.is_empty();
        }
        if self.held.is_empty() {
            self.held = Vec::new();
        }
        Poll::Ready(Ok(()))
    }

    /// Behind a write that was cut short comes its rest, whatever that looks like.
    fn note(&mut self, written: &Poll<io::Result<usize>>, whole: usize) {
        if matches!(written, Poll::Ready(Ok(count)) if *count < whole) {
            self.handshake = false;
        }
    }

    /// What was taken in counts as written; the next write, or a flush, waits until it is.
    fn begin(&mut self, cx: &mut Context<'_>, taken: usize) -> Poll<io::Result<usize>> {
        match self.poll_held(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(taken)),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Late<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Late<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(taken) = self.take_in(&[IoSlice::new(bytes)]) {
            return self.begin(cx, taken);
        }
        ready!(self.poll_held(cx))?;
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note(&written, bytes.len());
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(taken) = self.take_in(pieces) {
            return self.begin(cx, taken);
        }
        ready!(self.poll_held(cx))?;
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, pieces);
        self.note(&written, pieces.iter().map(|piece| piece.len()).sum());
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_held(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.going = !self.held.is_empty();
        ready!(self.poll_held(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
