//! HTTP/2 to an upstream, by the library's own interface: hyper's would put a task and a queue between a call and its
//! stream.

mod sending;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::error::Error;
use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{Reason, RecvStream};
use http::{Method, Request, Response, header};
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite};

use super::super::limits::Limits;
use super::super::pool::{Failed, SendError};
use sending::{End, Ongoing, Sending, Start};

/// The most errors of the upstream that are answered by a reset; then the connection goes.
const MAX_RESETS: usize = 1024;

/// Sends requests on one connection; clones share it, and the last one that goes, with the last stream, ends it.
#[derive(Clone, Debug)]
pub(in crate::proxy) struct Requests {
    streams: SendRequest<Bytes>,
    ended: Rc<Cell<bool>>,
}

/// Opens the connection, which then runs by itself on this data thread.
///
/// # Errors
/// If nothing can be sent.
pub(in crate::proxy) async fn connect<S>(stream: S, limits: &Limits) -> Result<Requests, h2::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(limits.h2_upstream_window())
        .initial_connection_window_size(limits.h2_upstream_connection_window())
        .max_send_buffer_size(limits.h2_send_buffer())
        .max_header_list_size(limits.header_bytes_u32())
        .max_local_error_reset_streams(Some(MAX_RESETS));
    let (streams, connection) = builder.handshake(stream).await?;
    let ended = Rc::new(Cell::new(false));
    let noted = Rc::clone(&ended);
    tokio::task::spawn_local(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "an upstream connection ended");
        }
        noted.set(true);
    });
    Ok(Requests { streams, ended })
}

impl Requests {
    /// Whether the connection takes no more requests: it has ended, or the upstream has said that it will.
    pub(in crate::proxy) fn is_closed(&mut self) -> bool {
        let polled = self.streams.poll_ready(&mut Context::from_waker(Waker::noop()));
        self.ended.get() || matches!(polled, Poll::Ready(Err(_)))
    }

    /// How many streams the upstream allows at once.
    pub(in crate::proxy) fn limit(&self) -> usize {
        self.streams.current_max_send_streams()
    }

    /// Sends one request and waits for the head of its answer. Whoever waits no more resets the stream.
    ///
    /// # Errors
    /// See [`SendError`].
    pub(in crate::proxy) async fn send<B>(
        &mut self,
        request: Request<B>,
    ) -> Result<Response<Download>, SendError<B>>
    where
        B: Body<Data = Bytes, Error: Error> + Unpin + 'static,
    {
        if self.ended.get() || poll_fn(|cx| self.streams.poll_ready(cx)).await.is_err() {
            return Err(SendError::Unsent(Box::new(request)));
        }
        let (mut head, body) = request.into_parts();
        say_length(&mut head, &body);
        let is_whole = body.is_end_stream();
        let failed = |error| SendError::Failed(Failed::Http2(error));
        let opened = self.streams.send_request(Request::from_parts(head, ()), is_whole);
        let (answer, stream) = opened.map_err(failed)?;
        let sending = (!is_whole).then(|| Sending::new(body, stream));
        let (response, sending) = self.answer(answer, sending).await.map_err(failed)?;
        let left = length(&response);
        Ok(response.map(|stream| Download {
            stream,
            left,
            data_done: false,
            sending,
        }))
    }

    /// The body goes once the upstream lets the stream be opened, while its answer is waited for.
    async fn answer<B>(
        &mut self,
        mut answer: ResponseFuture,
        mut body: Option<Sending<B>>,
    ) -> Result<(Response<RecvStream>, Option<Ongoing>), h2::Error>
    where
        B: Body<Data = Bytes, Error: Error> + Unpin + 'static,
    {
        let mut ongoing = None;
        poll_fn(|cx| {
            // An error of the connection is the answer's too, and there it is told whether the request was read.
            if body.is_some()
                && self.streams.poll_ready(cx).is_ready()
                && let Some(body) = body.take()
            {
                match body.start(cx) {
                    Start::GoesOn(sending) => ongoing = Some(sending),
                    // The client may have taken the request back: its own stream is asked for that once this one waits.
                    Start::Ended(End::Broken) => {
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    Start::Ended(End::Sent | End::Refused) => {}
                }
            }
            let response = ready!(Pin::new(&mut answer).poll(cx))?;
            Poll::Ready(Ok((response, ongoing.take())))
        })
        .await
    }
}

/// A length that is known is said, that there is no body too where one is expected (RFC 9110 section 8.6).
fn say_length(head: &mut http::request::Parts, body: &impl Body) {
    let Some(length) = body.size_hint().exact() else {
        return;
    };
    let expects_none = [Method::GET, Method::HEAD, Method::DELETE].contains(&head.method);
    if length > 0 || !expects_none {
        head.headers
            .entry(header::CONTENT_LENGTH)
            .or_insert_with(|| length.into());
    }
}

/// The length that the answer gives itself; the library holds it to that.
fn length<B>(response: &Response<B>) -> Option<u64> {
    let length = response.headers().get(header::CONTENT_LENGTH)?;
    length.to_str().ok()?.parse().ok()
}

/// The body of an answer.
#[derive(Debug)]
pub(in crate::proxy) struct Download {
    stream: RecvStream,
    left: Option<u64>,
    data_done: bool,
    sending: Option<Ongoing>,
}

impl Drop for Download {
    /// What is still to come of the request is not waited for behind the answer's end, and nothing more goes out of a call
    /// that ends before it.
    fn drop(&mut self) {
        if self.stream.is_end_stream()
            && let Some(sending) = self.sending.take()
        {
            sending.complete();
        }
    }
}

impl Download {
    /// An upstream that does not want the rest of the request resets its stream behind a whole answer (RFC 9113 section
    /// 8.1).
    fn is_whole(&self, error: &h2::Error) -> bool {
        error.is_reset() && error.reason() == Some(Reason::NO_ERROR) && self.left == Some(0)
    }

    /// The client is told of an answer that broke off by a code that means no more than that: it must take the half for no
    /// whole, and a call that was read for no other.
    fn broken(error: h2::Error) -> h2::Error {
        match error.reason() {
            Some(Reason::NO_ERROR | Reason::REFUSED_STREAM) => Reason::INTERNAL_ERROR.into(),
            Some(_) | None => error,
        }
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let this = &mut *self;
        if !this.data_done {
            match ready!(this.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    this.stream.flow_control().release_capacity(data.len())?;
                    this.left = this.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) if this.is_whole(&error) => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(Self::broken(error)))),
                None => this.data_done = true,
            }
        }
        match ready!(this.stream.poll_trailers(cx)) {
            Err(error) if this.is_whole(&error) => Poll::Ready(None),
            Err(error) => Poll::Ready(Some(Err(Self::broken(error)))),
            Ok(trailers) => Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
