//! A client's HTTP/1 stream, cut where one request ends and the next begins.
//!
//! Whoever reads gets at most one head at a time, and a head with a [`Fault`] never: in its place comes
//! [`STAND_IN`], and [`Refused`] says why. So such a request is answered in its turn, behind the answers to those
//! before it, and recorded like any other. A connection that is closed while the client still sends is read on for a
//! while, because data that nobody reads would reset it and take the answer along.

#[cfg(test)]
mod tests;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::http::framing::{ChunkReader, Fault, Framing, Head, HeadLimits, HeadReader};

/// What is read in place of a request that is refused: well-formed, and for no host that can be.
pub const STAND_IN: &[u8] = b"GET / HTTP/1.1\r\nhost: refused.invalid\r\n\r\n";

/// How long a closed connection is read on: altogether, and while nothing comes.
const LINGER: Duration = Duration::from_secs(30);
const LINGER_IDLE: Duration = Duration::from_secs(5);

/// Why a request was not read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cause {
    /// What is wrong with its head.
    Fault(Fault),
    /// Its head did not come in whole in time.
    Slow,
    /// The client closed in the middle of its head.
    Closed,
}

/// A request that was not read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refused {
    /// Why.
    pub cause: Cause,
    /// Its method, as far as it can be told.
    pub method: String,
    /// Its target, as far as it can be told.
    pub target: String,
}

/// What the stream and those who answer its requests tell each other. They are of one thread; the lock is there
/// because hyper gives a switched stream away only if it is `Send`, and is never waited for.
#[derive(Clone, Debug, Default)]
pub struct Notice(Arc<Mutex<Told>>);

#[derive(Debug, Default)]
struct Told {
    refused: Option<Refused>,
    switched: bool,
}

impl Notice {
    /// Whether the request just read is the stand-in of one that was refused. Only the first to ask is told.
    #[must_use]
    pub fn take_refused(&self) -> Option<Refused> {
        self.lock().refused.take()
    }

    /// Protocols were switched: what follows is no HTTP.
    pub fn switched(&self) {
        self.lock().switched = true;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The stream.
#[derive(Debug)]
pub struct Requests<S> {
    stream: S,
    limits: HeadLimits,
    notice: Notice,
    /// Bytes that came but were not asked for yet.
    held: BytesMut,
    at: At,
    linger: Option<Linger>,
}

#[derive(Clone, Copy, Debug)]
enum At {
    /// In a head, of which `held` has what came so far.
    Head(HeadReader),
    /// `held` begins with so many bytes of a head that is to be read; then comes its body.
    Given(usize, Body),
    Body(Body),
}

#[derive(Clone, Copy, Debug)]
enum Body {
    Length(u64),
    Chunked(ChunkReader),
    /// Nothing more is read: the request was refused.
    Over,
    /// No HTTP any more.
    Opaque,
}

#[derive(Debug)]
struct Linger {
    end: Instant,
    timer: Pin<Box<Sleep>>,
}

impl<S> Requests<S> {
    /// Cuts `stream`, which begins with a request.
    pub fn new(stream: S, limits: HeadLimits, notice: Notice) -> Self {
        Self {
            stream,
            limits,
            notice,
            held: BytesMut::new(),
            at: At::Head(HeadReader::default()),
            linger: None,
        }
    }

    /// Gives out what `held` has, up to `most` bytes.
    fn give(&mut self, most: usize, buf: &mut ReadBuf<'_>) -> usize {
        let count = self.held.len().min(most).min(buf.remaining());
        buf.put_slice(self.held.get(..count).unwrap_or_default());
        self.held.advance(count);
        count
    }

    /// Puts a stand-in in the place of the head that `held` has the beginning of.
    fn refuse(&mut self, cause: Cause) {
        let lines = self.held.as_ref().split(|byte| matches!(byte, b'\r' | b'\n'));
        let line = lines.into_iter().find(|line| !line.is_empty());
        let mut words = line.unwrap_or_default().split(|byte| *byte == b' ');
        let mut word = || String::from_utf8_lossy(words.next().unwrap_or_default()).into_owned();
        let (method, target) = (word(), word());
        self.notice.lock().refused = Some(Refused {
            cause,
            method,
            target,
        });
        self.held.clear();
        self.held.extend_from_slice(STAND_IN);
        self.at = At::Given(STAND_IN.len(), Body::Over);
    }

    /// A body's bytes came: keeps back what belongs to the next request.
    fn cut(&mut self, start: usize, body: Body, buf: &mut ReadBuf<'_>) -> io::Result<()> {
        let came = buf.filled().get(start..).unwrap_or_default();
        let mut body = body;
        let end = match &mut body {
            Body::Length(left) => {
                let taken = usize::try_from(*left).map_or(came.len(), |left| left.min(came.len()));
                *left -= taken as u64;
                (*left == 0).then_some(taken)
            }
            Body::Chunked(reader) => reader
                .read(came)
                .map_err(|fault| io::Error::new(io::ErrorKind::InvalidData, format!("{fault:?}")))?,
            Body::Over | Body::Opaque => None,
        };
        self.at = At::Body(body);
        if let Some(end) = end {
            let mut next = BytesMut::from(came.get(end..).unwrap_or_default());
            buf.set_filled(start + end);
            // What was held before comes first; it was empty unless these bytes are from it.
            next.unsplit(std::mem::take(&mut self.held));
            self.held = next;
            self.at = At::Head(HeadReader::default());
        }
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> Requests<S> {
    fn poll_head(
        &mut self,
        reader: HeadReader,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<bool>> {
        let mut reader = reader;
        if !self.held.is_empty() {
            match reader.read(&self.held, self.limits) {
                Ok(Some(head)) => {
                    self.at = At::Given(head.bytes, body(head));
                    return Poll::Ready(Ok(false));
                }
                Ok(None) => self.at = At::Head(reader),
                Err(fault) => {
                    self.refuse(Cause::Fault(fault));
                    return Poll::Ready(Ok(false));
                }
            }
        }
        let start = buf.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        let came = buf.filled().get(start..).unwrap_or_default();
        match read {
            Err(error) if self.held.is_empty() => return Poll::Ready(Err(error)),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => self.refuse(Cause::Slow),
            Err(_) => self.refuse(Cause::Closed),
            Ok(()) if !came.is_empty() => {
                self.held.extend_from_slice(came);
                buf.set_filled(start);
            }
            Ok(()) if self.held.is_empty() => return Poll::Ready(Ok(true)),
            Ok(()) => self.refuse(Cause::Closed),
        }
        Poll::Ready(Ok(false))
    }

    fn poll_body(&mut self, body: Body, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let start = buf.filled().len();
        if self.held.is_empty() {
            ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        } else {
            self.give(usize::MAX, buf);
        }
        Poll::Ready(self.cut(start, body, buf))
    }
}

fn body(head: Head) -> Body {
    match head.framing {
        Framing::Length(length) => Body::Length(length),
        Framing::Chunked => Body::Chunked(ChunkReader::default()),
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Requests<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            match this.at {
                At::Head(_) if this.notice.lock().switched => this.at = At::Body(Body::Opaque),
                At::Head(reader) => {
                    if ready!(this.poll_head(reader, cx, buf))? {
                        return Poll::Ready(Ok(()));
                    }
                }
                At::Given(left, body) => {
                    let left = left - this.give(left, buf);
                    this.at = match body {
                        _ if left > 0 => At::Given(left, body),
                        Body::Length(0) => At::Head(HeadReader::default()),
                        Body::Length(_) | Body::Chunked(_) | Body::Over | Body::Opaque => At::Body(body),
                    };
                    return Poll::Ready(Ok(()));
                }
                At::Body(Body::Over) => return Poll::Ready(Ok(())),
                At::Body(body) => return this.poll_body(body, cx, buf),
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Requests<S> {
    /// Reads and forgets what the client still sends, until it closes or takes too long.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let linger = self.linger.get_or_insert_with(|| Linger {
            end: Instant::now() + LINGER,
            timer: Box::pin(tokio::time::sleep(LINGER_IDLE)),
        });
        let mut scratch = [0; 4096];
        loop {
            let mut buf = ReadBuf::new(&mut scratch);
            match Pin::new(&mut self.stream).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    let now = Instant::now();
                    if now >= linger.end {
                        return Poll::Ready(());
                    }
                    linger.timer.as_mut().reset(linger.end.min(now + LINGER_IDLE));
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return linger.timer.as_mut().poll(cx),
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Requests<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.linger.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        }
        match self.at {
            // Between two requests nothing is lost, and behind a switch both sides close for themselves.
            At::Head(_) | At::Body(Body::Opaque) => {}
            At::Given(..) | At::Body(_) => ready!(self.poll_linger(cx)),
        }
        Poll::Ready(Ok(()))
    }
}
