//! A connection to an upstream as hyper writes to it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::net::deadline::Silence;

/// A stream on which a failed write is left to the reading side to tell: an upstream that answers before it has read
/// the whole request and closes makes the next write fail while its answer waits to be read, and hyper would give up
/// at the write.
#[derive(Debug)]
pub(super) struct UpstreamStream<S> {
    stream: S,
    stalled: Silence,
    broken: bool,
}

impl<S> UpstreamStream<S> {
    /// `stall` is how long the upstream may take no byte.
    pub(super) fn new(stream: S, stall: Duration) -> Self {
        Self {
            stream,
            stalled: Silence::new(stall),
            broken: false,
        }
    }

    fn judge<R>(&mut self, progress: Poll<io::Result<R>>, cx: &mut Context<'_>) -> Poll<io::Result<R>> {
        match progress {
            Poll::Ready(Ok(done)) => {
                self.stalled.heard();
                Poll::Ready(Ok(done))
            }
            Poll::Ready(Err(_)) => {
                self.broken = true;
                Poll::Pending
            }
            Poll::Pending => self.stalled.poll(cx).map(|()| {
                Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the upstream took nothing for too long",
                ))
            }),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for UpstreamStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for UpstreamStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.broken {
            return Poll::Pending;
        }
        let progress = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.judge(progress, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.broken {
            return Poll::Pending;
        }
        let progress = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.judge(progress, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.broken {
            return Poll::Pending;
        }
        let progress = Pin::new(&mut self.stream).poll_flush(cx);
        self.judge(progress, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.broken {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::time::Instant;

    use super::*;

    const STALL: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn an_upstream_that_takes_nothing_ends_the_wait() {
        let (near, _far) = duplex(16);
        let mut stream = UpstreamStream::new(near, STALL);
        let start = Instant::now();
        let error = stream.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!((error.kind(), start.elapsed()), (io::ErrorKind::TimedOut, STALL));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_write_leaves_the_answer_to_be_read() {
        let (near, mut far) = duplex(64);
        far.write_all(b"early").await.unwrap();
        drop(far);
        let mut stream = UpstreamStream::new(near, STALL);
        let write = tokio::time::timeout(STALL * 2, stream.write_all(b"more")).await;
        assert!(write.is_err(), "the write told of its failure: {write:?}");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "early");
        stream.shutdown().await.unwrap();
    }
}
