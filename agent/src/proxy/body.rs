//! Bodies on their way through: counted, never gathered, and each answer ends its call's record.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderName;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;

use crate::credential::is_client_credential;
use crate::http::headers::clean_trailers;
use crate::net::deadline::Silence;
use crate::policy::spelling::is_one_header;

use super::ahead::{Ahead, Piece};
use super::answer::AnswerBody;
use super::finish::Finish;
use super::pool::Failed;
use super::taking::Taking;

/// What has passed of a request's body.
#[derive(Debug, Default)]
pub(super) struct Upload {
    bytes: Cell<u64>,
    complete: Cell<bool>,
    broken: Cell<bool>,
    abandoned: Cell<bool>,
    waits: Cell<bool>,
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

    /// The call has ended: what is still to come of the body goes nowhere.
    pub(super) fn abandon(&self) {
        self.abandoned.set(true);
    }

    /// Whether it is the client that more of the body has to come from.
    pub(super) fn waits(&self) -> bool {
        self.waits.get()
    }

    /// Whether the client's body ended in an error.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.get()
    }
}

/// A request's body on its way to the upstream. What nobody wants of it is read away for a moment on HTTP/2.
#[derive(Debug)]
pub(super) struct UploadBody {
    inner: Option<Incoming>,
    progress: Rc<Upload>,
    silence: Silence,
    taking: Option<Rc<Taking>>,
    /// The header that the agent's credential is in.
    credential: Option<HeaderName>,
}

impl UploadBody {
    /// `idle` is how long the client may send nothing of it.
    pub(super) fn new(inner: Incoming, idle: Duration, taking: Option<Rc<Taking>>) -> (Self, Rc<Upload>) {
        let progress = Rc::new(Upload::default());
        progress.complete.set(inner.is_end_stream());
        (
            Self {
                inner: Some(inner),
                progress: Rc::clone(&progress),
                silence: Silence::new(idle),
                taking,
                credential: None,
            },
            progress,
        )
    }

    /// No trailer may have this name, under which the agent has put its credential on the request.
    pub(super) fn keep_from_trailers(&mut self, credential: HeaderName) {
        self.credential = Some(credential);
    }
}

impl Body for UploadBody {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.progress.abandoned.get() && !self.progress.complete.get() {
            return Poll::Ready(Some(Err(UploadError::Abandoned)));
        }
        let this = &mut *self;
        let Some(inner) = &mut this.inner else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(&mut *inner).poll_frame(cx);
        let progress = &this.progress;
        progress.waits.set(polled.is_pending());
        if polled.is_ready() {
            this.silence.heard();
        } else if this.silence.poll(cx).is_ready() {
            progress.broken.set(true);
            return Poll::Ready(Some(Err(UploadError::Silent)));
        }
        match &polled {
            Poll::Pending => {}
            Poll::Ready(None) => progress.complete.set(true),
            Poll::Ready(Some(Err(_))) => progress.broken.set(true),
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    progress.bytes.set(progress.bytes.get() + data.len() as u64);
                }
                progress.complete.set(inner.is_end_stream());
            }
        }
        let credential = this.credential.as_ref();
        polled
            .map_ok(|frame| cleaned_upload(frame, credential))
            .map_err(UploadError::Client)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner
            .as_ref()
            .map_or_else(SizeHint::default, Incoming::size_hint)
    }
}

impl Drop for UploadBody {
    fn drop(&mut self) {
        let unread = !self.progress.complete.get() && !self.progress.broken.get();
        if let (true, Some(taking), Some(inner)) = (unread, &self.taking, self.inner.take()) {
            taking.linger(inner);
        }
    }
}

/// Why a request's body ended before its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum UploadError {
    /// The client broke off.
    #[error("the client's body broke off: {0}")]
    Client(hyper::Error),
    /// Nothing came for too long.
    #[error("the client sent nothing of its body for too long")]
    Silent,
    /// Its call was over.
    #[error("the call ended before its body")]
    Abandoned,
}

/// As [`cleaned`], and without what could be a credential, whatever the rule says of headers: no service takes one
/// from there, and some add to the headers what is.
fn cleaned_upload(frame: Frame<Bytes>, credential: Option<&HeaderName>) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(mut trailers) => {
            clean_trailers(&mut trailers);
            let is_ours = |name: &HeaderName| {
                credential.is_some_and(|ours| is_one_header(name.as_str(), ours.as_str()))
            };
            let found: Vec<_> = trailers
                .keys()
                .filter(|name| is_client_credential(name) || is_ours(name))
                .cloned()
                .collect();
            for name in found {
                trailers.remove(name);
            }
            Frame::trailers(trailers)
        }
        Err(frame) => frame,
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
    inner: AnswerBody,
    finish: Option<Finish>,
    /// There on HTTP/1.
    ahead: Option<Rc<Ahead>>,
    silence: Silence,
}

impl Relay {
    pub(super) fn new(inner: AnswerBody, finish: Finish) -> Self {
        Self {
            inner,
            ahead: (!finish.is_http2()).then(Rc::default),
            silence: Silence::new(finish.limits().idle()),
            finish: Some(finish),
        }
    }
}

/// Why an answer's body ended before its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum DownloadError {
    /// The upstream broke off.
    #[error("the upstream's answer broke off: {0}")]
    Upstream(#[from] Failed),
    /// The upstream fell silent.
    #[error("the upstream sent nothing for too long")]
    Silent,
    /// A new policy forbids what was under way.
    #[error("the policy no longer allows this call")]
    Revoked,
}

impl Body for DownloadBody {
    type Data = Piece;
    type Error = DownloadError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, Self::Error>>> {
        match self.get_mut() {
            Self::Own(body) => Pin::new(body)
                .poll_frame(cx)
                .map_ok(|frame| frame.map_data(Piece::from))
                .map_err(|never| match never {}),
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
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, DownloadError>>> {
        let Some(finish) = &mut self.finish else {
            return Poll::Ready(None);
        };
        finish.asked();
        if let Some(end) = finish.ended(cx) {
            self.end(|finish| finish.cut(end));
            return Poll::Ready(Some(Err(DownloadError::Revoked)));
        }
        if let Some(ahead) = &self.ahead {
            ready!(ahead.poll_room(cx));
        }
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Pending if self.silence.poll(cx).is_ready() => {
                self.end(Finish::silent);
                Poll::Ready(Some(Err(DownloadError::Silent)))
            }
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

    fn pass(&mut self, frame: Frame<Bytes>) -> Frame<Piece> {
        self.silence.heard();
        let frame = cleaned(frame);
        if let (Some(finish), Some(data)) = (&mut self.finish, frame.data_ref()) {
            finish.passed(data.len());
        }
        // hyper does not ask for more behind trailers.
        if frame.is_trailers() || self.inner.is_end_stream() {
            self.end(Finish::complete);
        }
        frame.map_data(|data| match &self.ahead {
            Some(ahead) => ahead.piece(data),
            None => data.into(),
        })
    }

    fn end(&mut self, how: impl FnOnce(Finish)) {
        if let Some(finish) = self.finish.take() {
            how(finish);
        }
    }
}

impl Drop for Relay {
    /// hyper lets go of an answer that nobody takes any more.
    fn drop(&mut self) {
        self.end(Finish::left);
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use super::*;

    #[test]
    fn no_trailer_is_read_as_a_credential_whoever_writes_it() {
        let left = |credential: Option<&HeaderName>| {
            let names = [
                "x-sum",
                "x-house-key",
                "x_house_key",
                "x_api_key",
                "content_length",
            ];
            let trailers: HeaderMap = names
                .into_iter()
                .map(|name| (HeaderName::from_static(name), HeaderValue::from_static("1")))
                .collect();
            let frame = cleaned_upload(Frame::trailers(trailers), credential);
            let mut left: Vec<_> = frame
                .trailers_ref()
                .unwrap()
                .keys()
                .map(HeaderName::to_string)
                .collect();
            left.sort();
            left
        };
        let own = HeaderName::from_static("x-house-key");
        assert_eq!(left(Some(&own)), ["x-sum"]);
        assert_eq!(left(None), ["x-house-key", "x-sum", "x_house_key"]);
    }
}
