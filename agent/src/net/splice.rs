//! Copies both ways until both ends close, with counts and half-close.

#[cfg(test)]
mod tests;

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// Memory per direction.
const BUFFER: usize = 16 * 1024;

/// Bytes that went each way so far; readable while the copy runs and after it was dropped.
#[derive(Debug, Default)]
pub struct Counts {
    up: AtomicU64,
    down: AtomicU64,
}

impl Counts {
    /// Bytes written to the upstream.
    #[must_use]
    pub fn up(&self) -> u64 {
        self.up.load(Ordering::Relaxed)
    }
    /// Bytes written to the client.
    #[must_use]
    pub fn down(&self) -> u64 {
        self.down.load(Ordering::Relaxed)
    }
}

/// How long a tunnel may stand still.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// No byte in either direction.
    pub idle: Duration,
    /// Bytes are waiting for a side that does not take them.
    pub stall: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(300),
            stall: Duration::from_secs(60),
        }
    }
}

/// Why a copy ended before both sides closed.
#[derive(Debug, thiserror::Error)]
pub enum SpliceError {
    /// Nothing came for too long.
    #[error("no byte went either way for {seconds} s")]
    Idle {
        /// The limit.
        seconds: u64,
    },
    /// One side did not read for too long.
    #[error("the {side} took no bytes for {seconds} s")]
    Stalled {
        /// `client` or `upstream`.
        side: &'static str,
        /// The limit.
        seconds: u64,
    },
    /// One side broke.
    #[error("the {side} connection broke: {source}")]
    Io {
        /// `client` or `upstream`.
        side: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

/// Copies until both sides have closed; a side's close is passed on while the other direction goes on.
///
/// # Errors
/// See [`SpliceError`]; the counts are right in every case.
pub async fn splice<A, B>(
    client: A,
    upstream: B,
    patience: Patience,
    counts: &Counts,
) -> Result<(), SpliceError>
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let mut client = pin!(client);
    let mut upstream = pin!(upstream);
    let mut up = Direction::new(["client", "upstream"], &counts.up);
    let mut down = Direction::new(["upstream", "client"], &counts.down);
    let mut timer = pin!(sleep_until(Instant::now() + patience.idle.min(patience.stall)));
    std::future::poll_fn(|context| {
        (up.last, down.last) = (down.source_closed, up.source_closed);
        let up_done = up.poll(context, client.as_mut(), upstream.as_mut())?.is_ready();
        let down_done = down.poll(context, upstream.as_mut(), client.as_mut())?.is_ready();
        if up_done && down_done {
            return Poll::Ready(Ok(()));
        }
        poll_patience(context, timer.as_mut(), patience, [&up, &down])
    })
    .await
}

/// Ready only with an error. The timer is moved when it fires, not at each byte.
fn poll_patience(
    context: &mut Context<'_>,
    mut timer: Pin<&mut Sleep>,
    patience: Patience,
    directions: [&Direction<'_>; 2],
) -> Poll<Result<(), SpliceError>> {
    loop {
        ready!(timer.as_mut().poll(context));
        let now = Instant::now();
        let [up, down] = directions;
        for direction in directions {
            if direction.waits() && now >= direction.progress + patience.stall {
                let [_, side] = direction.sides;
                return Poll::Ready(Err(SpliceError::Stalled {
                    side,
                    seconds: patience.stall.as_secs(),
                }));
            }
        }
        let idle_end = up.progress.max(down.progress) + patience.idle;
        if now >= idle_end {
            return Poll::Ready(Err(SpliceError::Idle {
                seconds: patience.idle.as_secs(),
            }));
        }
        let next = directions
            .iter()
            .filter(|direction| direction.waits())
            .map(|direction| direction.progress + patience.stall)
            // A stall may begin at any time: look again at least that often.
            .fold(idle_end.min(now + patience.stall), Ord::min);
        timer.as_mut().reset(next);
    }
}

/// One direction's buffer and how far it is.
struct Direction<'a> {
    /// From and to.
    sides: [&'static str; 2],
    counter: &'a AtomicU64,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    source_closed: bool,
    /// The other side has closed already.
    last: bool,
    unflushed: bool,
    done: bool,
    progress: Instant,
}

impl<'a> Direction<'a> {
    fn new(sides: [&'static str; 2], counter: &'a AtomicU64) -> Self {
        Self {
            sides,
            counter,
            buffer: vec![0; BUFFER].into(),
            start: 0,
            end: 0,
            source_closed: false,
            last: false,
            unflushed: false,
            done: false,
            progress: Instant::now(),
        }
    }

    /// Whether bytes wait for the receiving side.
    fn waits(&self) -> bool {
        self.start < self.end
    }

    /// Ready once the source has closed and the sink was told.
    fn poll<R, W>(
        &mut self,
        context: &mut Context<'_>,
        mut source: Pin<&mut R>,
        mut sink: Pin<&mut W>,
    ) -> Poll<Result<(), SpliceError>>
    where
        R: AsyncRead,
        W: AsyncWrite,
    {
        let [from, to] = self.sides;
        let broken = |side| move |source| SpliceError::Io { side, source };
        while !self.done {
            if self.waits() {
                ready!(self.poll_write(context, sink.as_mut())).map_err(broken(to))?;
            } else if self.source_closed {
                ready!(sink.as_mut().poll_shutdown(context)).map_err(broken(to))?;
                self.done = true;
            } else {
                match self.poll_fill(context, source.as_mut()) {
                    Poll::Ready(filled) => filled.map_err(broken(from))?,
                    Poll::Pending if self.unflushed => {
                        // The sink may keep bytes back (TLS does): nothing more to come now, so push them out.
                        ready!(sink.as_mut().poll_flush(context)).map_err(broken(to))?;
                        self.unflushed = false;
                        return Poll::Pending;
                    }
                    Poll::Pending => return Poll::Pending,
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_fill<R: AsyncRead>(
        &mut self,
        context: &mut Context<'_>,
        source: Pin<&mut R>,
    ) -> Poll<io::Result<()>> {
        let mut into = ReadBuf::new(&mut self.buffer);
        match ready!(source.poll_read(context, &mut into)) {
            // Many end TLS without saying so once there is nobody to talk to.
            Err(error) if self.last && error.kind() == io::ErrorKind::UnexpectedEof => {}
            read => read?,
        }
        self.start = 0;
        self.end = into.filled().len();
        self.source_closed = self.end == 0;
        self.progress = Instant::now();
        Poll::Ready(Ok(()))
    }

    fn poll_write<W: AsyncWrite>(
        &mut self,
        context: &mut Context<'_>,
        sink: Pin<&mut W>,
    ) -> Poll<io::Result<()>> {
        let pending = self.buffer.get(self.start..self.end).unwrap_or_default();
        let written = ready!(sink.poll_write(context, pending))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.start += written;
        self.unflushed = true;
        self.progress = Instant::now();
        self.counter
            .fetch_add(u64::try_from(written).unwrap_or(u64::MAX), Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}
