//! Bodies on their way through: counted, never gathered, and each answer ends its call's record.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;

use crate::http::headers::clean_trailers;

use super::finish::Finish;

/// What has passed of a request's body.
#[derive(Debug, Default)]
pub(super) struct Upload {
    bytes: Cell<u64>,
    complete: Cell<bool>,
    broken: Cell<bool>,
}

impl Upload {
    /// Payload bytes that the client sent and that were handed on.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// Whether the client's body was handed on to its end.
    pub(super) fn is_complete(&self) -> bool {
        self.complete.get()
    }

    /// Whether the client's body ended in an error.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.get()
    }
}

/// A request's body on its way to the upstream.
#[derive(Debug)]
pub(super) struct UploadBody {
    inner: Incoming,
    progress: Rc<Upload>,
}

impl UploadBody {
    pub(super) fn new(inner: Incoming) -> (Self, Rc<Upload>) {
        let progress = Rc::new(Upload::default());
        progress.complete.set(inner.is_end_stream());
        (
            Self {
                inner,
                progress: Rc::clone(&progress),
            },
            progress,
        )
    }
}

impl Body for UploadBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        let progress = &self.progress;
        match &polled {
            Poll::Pending => {}
            Poll::Ready(None) => progress.complete.set(true),
            Poll::Ready(Some(Err(_))) => progress.broken.set(true),
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    progress.bytes.set(progress.bytes.get() + data.len() as u64);
                }
                progress.complete.set(self.inner.is_end_stream());
            }
        }
        polled.map_ok(cleaned)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

fn cleaned(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(mut trailers) => {
            clean_trailers(&mut trailers);
            Frame::trailers(trailers)
        }
        Err(frame) => frame,
    }
}

/// An answer's body on its way to the client.
#[derive(Debug)]
pub(super) enum DownloadBody {
    /// Made here: a refusal or an error.
    Own(Full<Bytes>),
    /// The upstream's; its end, or its loss, ends the call.
    Upstream(Box<Relay>),
}

/// The upstream's body with the call that it belongs to.
#[derive(Debug)]
pub(super) struct Relay {
    inner: Incoming,
    finish: Option<Finish>,
}

impl Relay {
    pub(super) fn new(inner: Incoming, finish: Finish) -> Self {
        Self {
            inner,
            finish: Some(finish),
        }
    }
}

/// Why an answer's body ended before its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum DownloadError {
    /// The upstream broke off.
    #[error("the upstream's answer broke off: {0}")]
    Upstream(#[from] hyper::Error),
    /// A new policy forbids what was under way.
    #[error("the policy no longer allows this call")]
    Revoked,
}

impl Body for DownloadBody {
    type Data = Bytes;
    type Error = DownloadError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Self::Own(body) => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
            Self::Upstream(relay) => relay.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(body) => body.is_end_stream(),
            // Only a poll that sees the end can end the call's record.
            Self::Upstream(relay) => relay.finish.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(body) => body.size_hint(),
            Self::Upstream(relay) => relay.inner.size_hint(),
        }
    }
}

impl Relay {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, DownloadError>>> {
        let Some(finish) = &mut self.finish else {
            return Poll::Ready(None);
        };
        if let Some(end) = finish.ended(cx) {
            self.end(|finish| finish.cut(end));
            return Poll::Ready(Some(Err(DownloadError::Revoked)));
        }
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => {
                self.end(Finish::complete);
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                self.end(|finish| finish.broken(&error));
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(Some(Ok(frame))) => Poll::Ready(Some(Ok(self.pass(frame)))),
        }
    }

    fn pass(&mut self, frame: Frame<Bytes>) -> Frame<Bytes> {
        let frame = cleaned(frame);
        if let (Some(finish), Some(data)) = (&mut self.finish, frame.data_ref()) {
            finish.passed(data.len());
        }
        if self.inner.is_end_stream() {
            self.end(Finish::complete);
        }
        frame
    }

    fn end(&mut self, how: impl FnOnce(Finish)) {
        if let Some(finish) = self.finish.take() {
            how(finish);
        }
    }
}
