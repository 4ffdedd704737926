//! The first bytes of a connection, bounded and timed, replayed to whoever reads next.

#[cfg(test)]
mod tests;

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Instant, timeout_at};

use crate::http::detect::{self, Protocol};
use crate::tls::client_hello::{self, ClientHello, Hello};

/// How much of a connection's beginning is read, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes that a ClientHello or a request line may have.
    pub bytes: usize,
    /// Time from the start until the protocol is known.
    pub detection: Duration,
    /// Time from the start until the ClientHello is whole.
    pub hello: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: client_hello::MAX_BYTES,
            detection: Duration::from_secs(5),
            hello: Duration::from_secs(10),
        }
    }
}

/// What a connection speaks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Detected {
    /// TLS; the whole ClientHello has been read.
    Tls(ClientHello),
    /// HTTP/1 in the clear.
    Http1,
    /// HTTP/2 in the clear.
    Http2,
    /// Neither.
    Unknown,
}

/// Why the beginning of a connection could not be read.
#[derive(Debug, thiserror::Error)]
pub enum PeekError {
    /// The client closed before it had said enough; `bytes` came.
    #[error("the client closed the connection after {bytes} bytes, before its protocol was known")]
    Closed {
        /// How many bytes it had sent.
        bytes: usize,
    },
    /// The client said nothing, or too slowly. Protocols where the server speaks first end here.
    #[error("the client's protocol was not known within {seconds} s ({bytes} bytes came)")]
    DetectionTimeout {
        /// The limit.
        seconds: u64,
        /// How many bytes had come.
        bytes: usize,
    },
    /// The ClientHello was not whole in time.
    #[error("the ClientHello was not complete within {seconds} s ({bytes} bytes came)")]
    HelloTimeout {
        /// The limit.
        seconds: u64,
        /// How many bytes had come.
        bytes: usize,
    },
    /// More bytes than the limit.
    #[error("the ClientHello or request line is longer than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// It begins like TLS and breaks the format.
    #[error("the ClientHello is malformed")]
    Malformed,
    /// The connection broke.
    #[error("the client's connection broke: {source}")]
    Io {
        /// The system's answer.
        source: io::Error,
    },
}

/// A connection whose beginning could not be read.
#[derive(Debug)]
pub struct Unread<S> {
    /// Why.
    pub error: PeekError,
    /// It began like TLS, so that the client understands an alert.
    pub tls: bool,
    /// The connection, to say so on.
    pub stream: S,
}

/// Reads until the protocol, and for TLS the whole ClientHello, is known; nothing is lost of what was read.
///
/// # Errors
/// See [`PeekError`]; with the connection, whose first bytes are gone then.
pub async fn peek<S>(mut stream: S, limits: Limits) -> Result<(Detected, Replay<S>), Unread<S>>
where
    S: AsyncRead + Unpin,
{
    let (mut prefix, mut tls) = (BytesMut::with_capacity(4096), false);
    match read(&mut stream, limits, &mut prefix, &mut tls).await {
        Ok(detected) => Ok((detected, Replay::new(prefix, stream))),
        Err(error) => Err(Unread { error, tls, stream }),
    }
}

async fn read<S>(
    stream: &mut S,
    limits: Limits,
    prefix: &mut BytesMut,
    tls: &mut bool,
) -> Result<Detected, PeekError>
where
    S: AsyncRead + Unpin,
{
    let start = Instant::now();
    loop {
        let limit = if *tls { limits.hello } else { limits.detection };
        match timeout_at(start + limit, stream.read_buf(prefix)).await {
            Ok(Ok(0)) => return Err(PeekError::Closed { bytes: prefix.len() }),
            Ok(Ok(_)) => {}
            Ok(Err(source)) => return Err(PeekError::Io { source }),
            Err(_elapsed) => return Err(late(*tls, limit, prefix.len())),
        }
        if let Some(detected) = judge(prefix, tls)? {
            return Ok(detected);
        }
        if prefix.len() >= limits.bytes {
            return Err(PeekError::TooLarge { limit: limits.bytes });
        }
    }
}

fn late(tls: bool, limit: Duration, bytes: usize) -> PeekError {
    let seconds = limit.as_secs();
    if tls {
        PeekError::HelloTimeout { seconds, bytes }
    } else {
        PeekError::DetectionTimeout { seconds, bytes }
    }
}

/// `None` if more bytes are needed; `tls` becomes true once it can only be TLS.
fn judge(prefix: &[u8], tls: &mut bool) -> Result<Option<Detected>, PeekError> {
    if !*tls {
        match detect::detect(prefix) {
            Protocol::Http1 => return Ok(Some(Detected::Http1)),
            Protocol::Http2 => return Ok(Some(Detected::Http2)),
            Protocol::Unknown => return Ok(Some(Detected::Unknown)),
            Protocol::NeedMore => return Ok(None),
            Protocol::Tls => *tls = true,
        }
    }
    match client_hello::parse(prefix) {
        Hello::Found(hello) => Ok(Some(Detected::Tls(hello))),
        Hello::NeedMore => Ok(None),
        Hello::NotTls => Ok(Some(Detected::Unknown)),
        Hello::TooLarge => Err(PeekError::TooLarge {
            limit: client_hello::MAX_BYTES,
        }),
        Hello::Malformed => Err(PeekError::Malformed),
    }
}

/// A stream whose first bytes were read already; they come out first. Afterwards each read costs one branch
/// more than the stream's own, and the prefix holds no memory.
#[derive(Debug)]
pub struct Replay<S> {
    prefix: Option<BytesMut>,
    stream: S,
}

impl<S> Replay<S> {
    /// Puts `prefix` before what the stream has yet to give.
    #[must_use]
    pub fn new(prefix: BytesMut, stream: S) -> Self {
        let prefix = (!prefix.is_empty()).then_some(prefix);
        Self { prefix, stream }
    }

    /// The stream below; reading from it directly loses the prefix.
    #[must_use]
    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    /// What will be replayed.
    #[must_use]
    pub fn prefix(&self) -> &[u8] {
        self.prefix.as_deref().unwrap_or_default()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Replay<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let Some(prefix) = &mut this.prefix else {
            return Pin::new(&mut this.stream).poll_read(context, into);
        };
        let count = prefix.len().min(into.remaining());
        into.put_slice(prefix.get(..count).unwrap_or_default());
        prefix.advance(count);
        if prefix.is_empty() {
            this.prefix = None;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Replay<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
