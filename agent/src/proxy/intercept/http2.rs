//! HTTP/2 towards the client.
//!
//! The library answers some requests by itself, and hands others over to nobody when the connection ends; those have
//! their records from here, by what [`Frames`] saw of them.

use std::cell::Cell;
use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use http::StatusCode;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::audit::record::Protocol;
use crate::audit::{Kind, Opening};
use crate::net::cork::cork;
use crate::net::deadline::Timed;
use crate::net::frames::{Frames, Rejection};
use crate::policy::DenialReason;

use super::super::failure::{self, Failure};
use super::super::limits::Limits;
use super::super::request::Entry;
use super::super::taking::{Running, Streams};

/// Serves requests until the connection ends.
///
/// # Errors
/// Where the client broke the protocol, flooded or dripped: its connection then has a record of its own.
pub(super) async fn serve<S>(entry: Rc<Entry>, stream: S) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let limits = &entry.connection.thread.shared.limits;
    let stream = Timed::new(
        stream,
        limits.http2_deadlines(),
        entry.connection.activity.clone(),
    );
    let (stream, cork) = cork(stream);
    let stream = Frames::new(stream, limits.frames());
    let tally = stream.tally();
    let handed_over = Cell::new(0);
    let streams = Streams::new(limits.write_stall());
    let mut running = Running::new();
    let service = service_fn(|request| {
        handed_over.set(handed_over.get() + 1);
        super::answer(&entry, request, Some(streams.begin()))
    });
    let mut serving = pin!(builder(limits, streams.clone()).serve_connection(TokioIo::new(stream), service));
    let mut draining = pin!(entry.connection.thread.draining.cancelled());
    let mut cut = pin!(entry.connection.cut.cancelled());
    let mut drained = false;
    let served = poll_fn(|cx| {
        if cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        if !drained && draining.as_mut().poll(cx).is_ready() {
            drained = true;
            serving.as_mut().graceful_shutdown();
        }
        running.poll(&streams, cx);
        let polled = cork.poll(cx, |cx| serving.as_mut().poll(cx));
        running.poll(&streams, cx);
        for rejection in tally.rejections(handed_over.get()) {
            record(&entry, Some(rejection));
        }
        polled
    })
    .await;
    let failure = tally.abuse().map_or_else(
        || served.as_ref().err().and_then(failure::of_client_http2),
        |abuse| Some(failure::of_abuse(abuse)),
    );
    if failure.is_none() {
        (0..tally.unserved(handed_over.get())).for_each(|_| record(&entry, None));
    }
    super::ended(&entry, served);
    failure.map_or(Ok(()), Err)
}

fn builder(limits: &Limits, streams: Streams) -> http2::Builder<Streams> {
    let mut builder = http2::Builder::new(streams);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.h2_streams())
        .initial_stream_window_size(limits.h2_window())
        .initial_connection_window_size(limits.h2_connection_window())
        .max_header_list_size(limits.h2_header_bytes())
        .max_send_buf_size(limits.h2_send_buffer())
        .max_pending_accept_reset_streams(limits.h2_pending_resets())
        .max_local_error_reset_streams(limits.h2_local_resets());
    builder
}

/// The record of a request that was never read; without a rejection it ended with its connection.
fn record(entry: &Entry, rejection: Option<Rejection>) {
    let connection = &entry.connection;
    let shared = &connection.thread.shared;
    let begun = shared.audit.begin(Opening {
        connection: &connection.log(),
        kind: Kind::Call,
        scheme: Some(entry.scheme),
        protocol: Some(Protocol::H2),
        authority: None,
        method: None,
        path: None,
        query: None,
    });
    connection.begun();
    match begun {
        Ok(mut recorder) => {
            recorder.policy(&shared.policy.current().version);
            if rejection == Some(Rejection::TooLarge) {
                recorder.status(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE.as_u16());
            }
            let outcome = of_rejection(rejection).finish(recorder);
            connection.thread.figures.ended(outcome);
        }
        // As for a call: the log has said once that it fails, and the count becomes a record.
        Err(unavailable) => tracing::debug!(%unavailable, "a rejected request could not be recorded"),
    }
}

fn of_rejection(rejection: Option<Rejection>) -> Failure {
    match rejection {
        Some(Rejection::Refused) => Failure::denied(DenialReason::Limit),
        Some(Rejection::TooLarge) => Failure::denied(DenialReason::HeadTooLarge),
        Some(Rejection::Malformed) => Failure::Malformed("the request's head breaks HTTP/2"),
        None => Failure::Left {
            message: "the connection ended before the request was read".to_owned(),
        },
    }
}
