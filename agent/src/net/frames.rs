//! HTTP/2 frames as they pass, counted: a client that floods, or drips a head, is told so and cut off.
//!
//! The HTTP/2 library bounds what a connection may hold; it does not bound how often a client may make it work for
//! nothing. Counted within a window: streams that the client takes back (rapid reset, CVE-2023-44487), whether or not
//! they were served before, and frames that ask for work but carry no call (CVE-2019-9512, 9513, 9515, 9518).
//! Nothing is changed on the way through. Frames: RFC 9113 section 4.1.

#[cfg(test)]
mod tests;
mod walk;

use std::cell::Cell;
use std::future::Future as _;
use std::io;
use std::iter::repeat_n;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use walk::{MAX_STREAM, Walker};

/// What a client may do within `window`.
#[derive(Clone, Copy, Debug)]
pub struct FrameLimits {
    /// RST_STREAM frames.
    pub resets: u32,
    /// PING, SETTINGS and PRIORITY frames, empty DATA frames and frames of unknown types.
    pub idle_frames: u32,
    /// The time that both count in.
    pub window: Duration,
    /// From the first bytes of a request's head to its end.
    pub head: Duration,
}

/// What a client did too often, or too slowly.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Abuse {
    /// It took streams back.
    #[error("the client reset more streams than `limits.h2_resets` allows")]
    Resets,
    /// It sent frames without a call.
    #[error("the client flooded the connection with frames that carry no call")]
    IdleFrames,
    /// It did not end a request's head in time.
    #[error("the client did not end a request's head in time")]
    SlowHead,
}

/// A request that never came out of the HTTP/2 library: answered there, so nobody else can record it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Rejection {
    /// Over the number of concurrent streams: REFUSED_STREAM.
    Refused,
    /// Its head was larger than the library reads: 431.
    TooLarge,
    /// Its head broke HTTP/2 (RFC 9113 section 8.1.1): PROTOCOL_ERROR.
    Malformed,
}

/// What was seen of a connection, for who serves it.
#[derive(Clone, Debug, Default)]
pub struct Tally(Rc<Seen>);

#[derive(Debug, Default)]
struct Seen {
    abuse: Cell<Option<Abuse>>,
    /// Requests whose head came in whole.
    opened: Cell<u64>,
    /// Of what the library has sent since the last time: refused streams, streams reset as malformed, and answers
    /// without a body, which a 431 is.
    refused: Cell<u64>,
    malformed: Cell<u64>,
    bare: Cell<u64>,
    rejected: Cell<u64>,
    /// Our side can't send, so the library may hold back what it has read.
    blocked: Cell<bool>,
    /// The library has given the connection up: what is missing is missing for that.
    given_up: Cell<bool>,
}

impl Tally {
    /// What the connection was cut off for, if it was.
    #[must_use]
    pub fn abuse(&self) -> Option<Abuse> {
        self.0.abuse.get()
    }

    /// Requests that were rejected since the last time. To be asked when the library has done all that it can for
    /// now; `served` is how many it has handed over in all.
    pub fn rejections(&self, served: u64) -> impl Iterator<Item = Rejection> + use<> {
        let seen = &self.0;
        let mut left = if seen.blocked.get() || seen.given_up.get() {
            0
        } else {
            self.unserved(served)
        };
        // What was reset or answered may have been served before, hence not more than are missing.
        let mut take = |count: &Cell<u64>| {
            let taken = count.take().min(left);
            left -= taken;
            seen.rejected.set(seen.rejected.get() + taken);
            usize::try_from(taken).unwrap_or(usize::MAX)
        };
        let (refused, malformed, too_large) = (take(&seen.refused), take(&seen.malformed), take(&seen.bare));
        repeat_n(Rejection::Refused, refused)
            .chain(repeat_n(Rejection::Malformed, malformed))
            .chain(repeat_n(Rejection::TooLarge, too_large))
    }

    /// Requests that were neither served nor rejected: of a connection that has ended, those that ended with it.
    #[must_use]
    pub fn unserved(&self, served: u64) -> u64 {
        let seen = &self.0;
        seen.opened.get().saturating_sub(served + seen.rejected.get())
    }
}

const PREFACE: usize = 24;
/// How long, and for how many bytes, a closed connection is still read, so that the client gets our last words.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 1 << 20;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const NO_ERROR: u32 = 0;
const PROTOCOL_ERROR: u32 = 1;
const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u8 = 11;

/// The server's end of an HTTP/2 connection.
#[derive(Debug)]
pub struct Frames<S> {
    stream: S,
    limits: FrameLimits,
    tally: Tally,
    inbound: Walker,
    outbound: Walker,
    since: Instant,
    resets: u32,
    idle_frames: u32,
    last_stream: u32,
    last_answered: u32,
    last_accepted: u32,
    /// Between HEADERS and the CONTINUATION that ends them.
    head_open: bool,
    head_timer: Option<Pin<Box<Sleep>>>,
    closing: Option<Closing>,
}

impl<S> Frames<S> {
    /// Counts what `stream` brings from its first byte on.
    pub fn new(stream: S, limits: FrameLimits) -> Self {
        Self {
            stream,
            limits,
            tally: Tally::default(),
            inbound: Walker::after(PREFACE),
            outbound: Walker::after(0),
            since: Instant::now(),
            resets: 0,
            idle_frames: 0,
            last_stream: 0,
            last_answered: 0,
            last_accepted: MAX_STREAM,
            head_open: false,
            head_timer: None,
            closing: None,
        }
    }

    /// Where what was seen can be read.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.tally.clone()
    }

    /// What the client has sent.
    fn received(&mut self, bytes: &[u8]) {
        let (mut resets, mut idle) = (0_u32, 0_u32);
        let (last, seen) = (&mut self.last_stream, &self.tally.0);
        let (goaway, head_open) = (self.last_accepted, &mut self.head_open);
        self.inbound.walk(bytes, |frame| match frame.kind {
            RST_STREAM => resets += 1,
            HEADERS | CONTINUATION if frame.flags & END_HEADERS == 0 => *head_open = true,
            // With a smaller number it is the trailers of a stream.
            HEADERS | CONTINUATION if frame.stream > *last => {
                (*last, *head_open) = (frame.stream, false);
                seen.opened
                    .set(seen.opened.get() + u64::from(frame.stream <= goaway));
            }
            HEADERS | CONTINUATION => *head_open = false,
            WINDOW_UPDATE => {}
            DATA => idle += u32::from(frame.length == 0 && frame.flags & END_STREAM == 0),
            _others => idle += 1,
        });
        if resets + idle > 0 {
            self.count(resets, idle);
        }
    }

    fn count(&mut self, resets: u32, idle: u32) {
        let now = Instant::now();
        if now.duration_since(self.since) > self.limits.window {
            (self.since, self.resets, self.idle_frames) = (now, 0, 0);
        }
        self.resets = self.resets.saturating_add(resets);
        self.idle_frames = self.idle_frames.saturating_add(idle);
        if self.resets > self.limits.resets {
            self.cut_off(Abuse::Resets);
        } else if self.idle_frames > self.limits.idle_frames {
            self.cut_off(Abuse::IdleFrames);
        }
    }

    fn cut_off(&mut self, abuse: Abuse) {
        self.tally.0.abuse.set(Some(abuse));
        // In the middle of a frame of ours nothing can be said any more.
        let words = if self.outbound.between_frames() {
            goaway(self.last_stream)
        } else {
            Vec::new()
        };
        self.closing = Some(Closing::new(words));
    }

    /// Whether a head has been begun, and for too long.
    fn is_head_overdue(&mut self, cx: &mut Context<'_>) -> bool {
        let begun = self.inbound.begun();
        if !self.head_open && !begun.is_some_and(|frame| matches!(frame.kind, HEADERS | CONTINUATION)) {
            self.head_timer = None;
            return false;
        }
        let limit = self.limits.head;
        let timer = self
            .head_timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        timer.as_mut().poll(cx).is_ready()
    }

    /// What the library has answered.
    fn sent(&mut self, bytes: &[u8]) {
        let (last_answered, last_accepted) = (&mut self.last_answered, &mut self.last_accepted);
        let seen = &self.tally.0;
        let one_more = |count: &Cell<u64>| count.set(count.get() + 1);
        self.outbound
            .walk(bytes, |frame| match (frame.kind, frame.words) {
                (HEADERS, _) => {
                    *last_answered = frame.stream;
                    if frame.flags & END_STREAM != 0 {
                        one_more(&seen.bare);
                    }
                }
                (RST_STREAM, [REFUSED_STREAM, _]) => one_more(&seen.refused),
                // Behind a 431 the stream may be reset too.
                (RST_STREAM, [PROTOCOL_ERROR, _]) if frame.stream != *last_answered => {
                    one_more(&seen.malformed)
                }
                // Requests behind this one are not looked at any more, and the client may send them again elsewhere.
                (GOAWAY, [last_stream, NO_ERROR]) => *last_accepted = last_stream & MAX_STREAM,
                (GOAWAY, _) => seen.given_up.set(true),
                _others => {}
            });
    }
}

/// GOAWAY with ENHANCE_YOUR_CALM (RFC 9113 section 6.8).
fn goaway(last_stream: u32) -> Vec<u8> {
    let mut frame = vec![0, 0, 8, 7, 0, 0, 0, 0, 0];
    frame.extend(last_stream.to_be_bytes());
    frame.extend([0, 0, 0, ENHANCE_YOUR_CALM]);
    frame
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Frames<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.closing.is_none() {
            let before = buf.filled().len();
            let polled = Pin::new(&mut this.stream).poll_read(cx, buf);
            this.received(buf.filled().get(before..).unwrap_or_default());
            if this.closing.is_none() && this.is_head_overdue(cx) {
                this.cut_off(Abuse::SlowHead);
            }
            if this.closing.is_none() {
                return polled;
            }
            buf.set_filled(before);
        }
        if let Some(closing) = &mut this.closing {
            ready!(closing.poll(cx, &mut this.stream));
        }
        Poll::Ready(Err(io::Error::other("the client was cut off")))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Frames<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.closing.is_some() {
            // After our last words nothing more may go out; the reading side says why.
            return Poll::Ready(Ok(bytes.len()));
        }
        let polled = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.tally.0.blocked.set(polled.is_pending());
        let written = ready!(polled)?;
        this.sent(bytes.get(..written).unwrap_or_default());
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.closing.is_some() {
            return Poll::Ready(Ok(()));
        }
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.tally.0.blocked.set(polled.is_pending());
        polled
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let closing = this.closing.get_or_insert_with(|| Closing::new(Vec::new()));
        ready!(closing.poll(cx, &mut this.stream));
        Poll::Ready(Ok(()))
    }
}

/// Last words, then the close, then a moment of reading what the client still sends: a socket closed with unread
/// bytes answers with a reset, which takes the words with it (RFC 9293 section 3.10.4).
#[derive(Debug)]
struct Closing {
    words: Vec<u8>,
    said: usize,
    shut: bool,
    drained: usize,
    until: Pin<Box<Sleep>>,
}

impl Closing {
    fn new(words: Vec<u8>) -> Self {
        Self {
            words,
            said: 0,
            shut: false,
            drained: 0,
            until: Box::pin(tokio::time::sleep(LINGER)),
        }
    }

    /// Ready when the stream may be dropped; whether or not the client took all of it.
    fn poll<S: AsyncRead + AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, stream: &mut S) -> Poll<()> {
        if self.until.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        while let Some(rest) = self.words.get(self.said..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut *stream).poll_write(cx, rest)) {
                Ok(written) if written > 0 => self.said += written,
                Ok(_) | Err(_) => return Poll::Ready(()),
            }
        }
        if !self.shut {
            if ready!(Pin::new(&mut *stream).poll_shutdown(cx)).is_err() {
                return Poll::Ready(());
            }
            self.shut = true;
        }
        let mut space = [0; 4096];
        while self.drained < LINGER_BYTES {
            let mut sink = ReadBuf::new(&mut space);
            match ready!(Pin::new(&mut *stream).poll_read(cx, &mut sink)) {
                Ok(()) if !sink.filled().is_empty() => self.drained += sink.filled().len(),
                Ok(()) | Err(_) => return Poll::Ready(()),
            }
        }
        Poll::Ready(())
    }
}
