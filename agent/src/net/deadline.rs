//! Deadlines of one downstream connection: an idle client, a slow request head, a reader that stalls.
//!
//! The connection's requests report when they start and end ([`Activity`]); the stream ([`Timed`]) arms a
//! timer only when a read or a write has to wait, so that a busy connection pays for none.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// How long each kind of waiting may last.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// No request under way and no byte arriving.
    pub idle: Duration,
    /// From the first byte of a request head to its end. `None` where one connection carries many requests
    /// at once (HTTP/2) and a byte need not belong to a head.
    pub head: Option<Duration>,
    /// The peer takes no byte of what is written.
    pub write_stall: Duration,
}

/// Counts the requests under way on one connection.
///
/// The low 16 bits are the number under way, the high 16 change with every start and end, so that a timer
/// knows whether it still measures the same wait.
#[derive(Clone, Debug, Default)]
pub struct Activity(Arc<AtomicU32>);

const EPOCH: u32 = 1 << 16;

impl Activity {
    /// Counts a request until the guard is dropped.
    #[must_use]
    pub fn begin(&self) -> Busy {
        self.0.fetch_add(EPOCH + 1, Ordering::Relaxed);
        Busy(Arc::clone(&self.0))
    }

    fn state(&self) -> (u32, bool) {
        let state = self.0.load(Ordering::Relaxed);
        (state / EPOCH, state.is_multiple_of(EPOCH))
    }
}

/// One request under way.
#[derive(Debug)]
pub struct Busy(Arc<AtomicU32>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_add(EPOCH.wrapping_sub(1), Ordering::Relaxed);
    }
}

/// A stream whose waits end.
#[derive(Debug)]
pub struct Timed<T> {
    stream: T,
    deadlines: Deadlines,
    activity: Activity,
    reading: Wait,
    head_since: Option<Instant>,
    epoch: u32,
    writing: Silence,
}

impl<T> Timed<T> {
    /// Puts the deadlines on a stream; `activity` is what the connection's requests report to.
    pub fn new(stream: T, deadlines: Deadlines, activity: Activity) -> Self {
        Self {
            stream,
            deadlines,
            activity,
            reading: Wait::default(),
            head_since: None,
            epoch: 0,
            writing: Silence::new(deadlines.write_stall),
        }
    }

    fn read_deadline(&mut self) -> Option<Instant> {
        let (epoch, idle) = self.activity.state();
        if epoch != self.epoch {
            self.epoch = epoch;
            self.head_since = None;
            self.reading.clear();
        }
        if !idle {
            return None;
        }
        match (self.head_since, self.deadlines.head) {
            (Some(since), Some(head)) => Some(since + head),
            _ => Some(self.reading.since() + self.deadlines.idle),
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Timed<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        if let Poll::Ready(result) = Pin::new(&mut self.stream).poll_read(cx, buf) {
            self.reading.clear();
            if buf.filled().len() > before && self.head_since.is_none() {
                self.head_since = Some(Instant::now());
            }
            return Poll::Ready(result);
        }
        let Some(deadline) = self.read_deadline() else {
            return Poll::Pending;
        };
        ready!(self.reading.poll_until(deadline, cx));
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the client sent nothing for too long",
        )))
    }
}

impl<T: AsyncWrite + Unpin> Timed<T> {
    fn stalled<R>(&mut self, progress: Poll<io::Result<R>>, cx: &mut Context<'_>) -> Poll<io::Result<R>> {
        if progress.is_ready() {
            self.writing.heard();
            return progress;
        }
        ready!(self.writing.poll(cx));
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the client took nothing for too long",
        )))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Timed<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.stalled(progress, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let progress = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.stalled(progress, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let progress = Pin::new(&mut self.stream).poll_flush(cx);
        self.stalled(progress, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let progress = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.stalled(progress, cx)
    }
}

/// A wait for somebody who may be silent for so long.
#[derive(Debug)]
pub struct Silence {
    limit: Duration,
    wait: Wait,
}

impl Silence {
    /// Nobody is waited for yet.
    #[must_use]
    pub fn new(limit: Duration) -> Self {
        Self {
            limit,
            wait: Wait::default(),
        }
    }

    /// The wait is over.
    pub fn heard(&mut self) {
        self.wait.clear();
    }

    /// Waits; ready when it has lasted too long.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let deadline = self.wait.since() + self.limit;
        self.wait.poll_until(deadline, cx)
    }
}

/// One wait: since when, and the timer that ends it. The timer is kept from wait to wait, and moved to a later time
/// only when it fires: that comes once in many short waits.
#[derive(Debug, Default)]
struct Wait {
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Wait {
    fn since(&mut self) -> Instant {
        *self.since.get_or_insert_with(Instant::now)
    }

    fn clear(&mut self) {
        self.since = None;
    }

    fn poll_until(&mut self, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if timer.deadline() > deadline {
            timer.as_mut().reset(deadline);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    const DEADLINES: Deadlines = Deadlines {
        idle: Duration::from_secs(300),
        head: Some(Duration::from_secs(15)),
        write_stall: Duration::from_secs(60),
    };

    async fn waited(future: impl Future<Output = io::Result<usize>>) -> Duration {
        let start = Instant::now();
        let error = future.await.expect_err("the wait must end in an error");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_ends_after_the_idle_limit() {
        let (near, _far) = duplex(64);
        let mut timed = Timed::new(near, DEADLINES, Activity::default());
        assert_eq!(waited(timed.read(&mut [0; 8])).await.as_secs(), 300);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_head_ends_after_the_head_limit_however_it_drips() {
        let (near, mut far) = duplex(64);
        let mut timed = Timed::new(near, DEADLINES, Activity::default());
        let drip = tokio::spawn(async move {
            for _ in 0..10 {
                far.write_all(b"G").await.unwrap();
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
        });
        let start = Instant::now();
        let mut byte = [0; 1];
        while timed.read(&mut byte).await.is_ok() {}
        assert_eq!(start.elapsed().as_secs(), 15);
        drip.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_under_way_may_wait_and_the_idle_limit_starts_anew_after_it() {
        let (near, _far) = duplex(64);
        let activity = Activity::default();
        let busy = activity.begin();
        let mut timed = Timed::new(near, DEADLINES, activity);
        let quiet = tokio::time::timeout(Duration::from_secs(3600), timed.read(&mut [0; 8])).await;
        assert!(quiet.is_err(), "a read must not end while a request is under way");
        drop(busy);
        assert_eq!(waited(timed.read(&mut [0; 8])).await.as_secs(), 300);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_stalls_ends_the_write() {
        let (near, _far) = duplex(4);
        let mut timed = Timed::new(near, DEADLINES, Activity::default());
        timed.write_all(b"full").await.unwrap();
        assert_eq!(waited(timed.write(b"more")).await.as_secs(), 60);
    }
}
