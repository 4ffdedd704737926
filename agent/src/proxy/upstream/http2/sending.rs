//! A request's body on its way into a stream of HTTP/2, no faster than the upstream takes it.

use std::cell::Cell;
use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body;
use tokio::task::AbortHandle;

/// Reads the body and writes the stream until one of them ends. Dropped before, it resets the stream.
#[derive(Debug)]
pub(super) struct Sending<B> {
    body: B,
    stream: SendStream<Bytes>,
    /// A piece that waits for the upstream's windows, and whether it is the last.
    held: Option<(Bytes, bool)>,
    has_come: Rc<Cell<bool>>,
}

/// How the sending of a body ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum End {
    /// All of it was sent.
    Sent,
    /// The client broke it off.
    Broken,
    /// The upstream took no more of it.
    Refused,
}

/// What came of the first turn.
pub(super) enum Start {
    Ended(End),
    GoesOn(Ongoing),
}

/// A body that goes on being sent by itself; dropping this ends it.
#[derive(Debug)]
pub(super) struct Ongoing {
    task: AbortHandle,
    has_come: Rc<Cell<bool>>,
    is_spared: bool,
}

impl Ongoing {
    /// The call is complete: where all of the body has come, and only the upstream is waited for, it may have it.
    pub(super) fn complete(mut self) {
        self.is_spared = self.has_come.get();
    }
}

impl Drop for Ongoing {
    fn drop(&mut self) {
        if !self.is_spared {
            self.task.abort();
        }
    }
}

impl<B> Sending<B>
where
    B: Body<Data = Bytes, Error: Error> + Unpin + 'static,
{
    pub(super) fn new(body: B, stream: SendStream<Bytes>) -> Self {
        Self {
            body,
            stream,
            held: None,
            has_come: Rc::default(),
        }
    }

    /// Sends what there is. A body that is not at its end then goes on in a task of its own, beside the answer.
    pub(super) fn start(mut self, cx: &mut Context<'_>) -> Start {
        match Pin::new(&mut self).poll(cx) {
            Poll::Ready(end) => Start::Ended(end),
            Poll::Pending => Start::GoesOn(Ongoing {
                has_come: Rc::clone(&self.has_come),
                is_spared: false,
                task: tokio::task::spawn_local(self).abort_handle(),
            }),
        }
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<End, h2::Error>> {
        loop {
            if let Poll::Ready(reason) = self.stream.poll_reset(cx)? {
                return Poll::Ready(Err(reason.into()));
            }
            if self.held.is_some() {
                ready!(self.poll_room(cx))?;
            }
            if let Some((data, is_last)) = self.held.take() {
                self.stream.send_data(data, is_last)?;
                if is_last {
                    return Poll::Ready(Ok(End::Sent));
                }
            }
            let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)) else {
                self.stream.send_data(Bytes::new(), true)?;
                return Poll::Ready(Ok(End::Sent));
            };
            let frame = match frame {
                Ok(frame) => frame,
                Err(error) => {
                    tracing::debug!(%error, "a request's body breaks off");
                    self.stream.send_reset(Reason::CANCEL);
                    return Poll::Ready(Ok(End::Broken));
                }
            };
            match frame.into_data() {
                // Room is asked for only with a piece in hand: what is set aside for one stream another may wait for.
                Ok(data) => {
                    if !data.is_empty() {
                        self.stream.reserve_capacity(1);
                    }
                    let is_last = self.body.is_end_stream();
                    self.held = Some((data, is_last));
                    self.has_come.set(is_last);
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        self.stream.reserve_capacity(0);
                        self.stream.send_trailers(trailers)?;
                        return Poll::Ready(Ok(End::Sent));
                    }
                }
            }
        }
    }

    /// Waits until a byte of the piece in hand may go; the library keeps the rest of it until that may.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        let is_empty = self.held.as_ref().is_none_or(|(data, _)| data.is_empty());
        while !is_empty && self.stream.capacity() == 0 {
            match ready!(self.stream.poll_capacity(cx)) {
                Some(room) => drop(room?),
                // The stream is closed for sending.
                None => return Poll::Ready(Err(Reason::STREAM_CLOSED.into())),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<B> Future for Sending<B>
where
    B: Body<Data = Bytes, Error: Error> + Unpin + 'static,
{
    type Output = End;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<End> {
        Poll::Ready(ready!(self.poll_send(cx)).unwrap_or_else(|error| {
            tracing::debug!(%error, "a request's body could not be sent to its end");
            End::Refused
        }))
    }
}
