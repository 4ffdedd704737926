//! A connection whose requests are read: TLS and HTTP service towards the client.

mod http2;

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::addr::HostName;
use crate::net::deadline::Timed;
use crate::net::requests::{Notice, Requests};
use crate::policy::Scheme;
use crate::tls::Offer;
use crate::tls::client_hello::Alpn;
use crate::tls::leaf::Leaf;

use super::connection::{ClientStream, Connection};
use super::failure::{self, Failure};
use super::request::{self, Answering, Entry};
use super::taking::Taking;

/// Reads requests in the clear.
pub(super) async fn plain(connection: &Rc<Connection>, stream: ClientStream) {
    let connection = Rc::clone(connection);
    let entry = Entry {
        connection,
        scheme: Scheme::Http,
        sni: None,
        http2: false,
        notice: Notice::default(),
    };
    http1(Rc::new(entry), stream).await;
}

/// What a handshake with a client needs.
pub(super) struct Handshake {
    host: HostName,
    leaf: Arc<Leaf>,
    offer: Offer,
    start: Instant,
}

impl Handshake {
    /// Gets the leaf for `host`.
    ///
    /// # Errors
    /// If none can be had.
    pub(super) async fn prepare(
        connection: &Connection,
        host: HostName,
        alpn: Alpn,
    ) -> Result<Self, Failure> {
        let start = Instant::now();
        let leaf = leaf(connection, &host).await?;
        let offer = if alpn.http2 {
            Offer::Http2AndHttp1
        } else {
            Offer::Http1
        };
        Ok(Self {
            host,
            leaf,
            offer,
            start,
        })
    }
}

/// Terminates TLS and reads requests.
pub(super) async fn tls(
    connection: &Rc<Connection>,
    handshake: Handshake,
    stream: ClientStream,
) -> Result<(), Failure> {
    let Handshake {
        host,
        leaf,
        offer,
        start,
    } = handshake;
    let shared = &connection.thread.shared;
    let (stream, session) = shared
        .acceptor
        .accept(stream, &leaf, offer, shared.limits.handshake())
        .await
        .map_err(|error| failure::of_client_tls(&error))?;
    connection.shook_hands(start.elapsed());
    let connection = Rc::clone(connection);
    let entry = Rc::new(Entry {
        connection,
        scheme: Scheme::Https,
        sni: Some(host),
        http2: session.http2,
        notice: Notice::default(),
    });
    if session.http2 {
        // Boxed, as what [`http1`] has is: a connection would carry the room for either.
        Box::pin(http2::serve(Rc::clone(&entry), stream)).await?;
    } else {
        http1(Rc::clone(&entry), stream).await;
    }
    used(&entry.connection)
}

/// A client that ends its connection without a request has seen our certificate, and nobody else says so.
fn used(connection: &Connection) -> Result<(), Failure> {
    let ours = connection.cut.is_cancelled() || connection.thread.draining.is_cancelled();
    if connection.has_carried() || ours {
        Ok(())
    } else {
        Err(Failure::Unused)
    }
}

/// The leaf for `host`; the supervisor signs an intermediate when there is none yet, or a new one in time.
async fn leaf(connection: &Connection, host: &HostName) -> Result<Arc<Leaf>, Failure> {
    let shared = &connection.thread.shared;
    let now = SystemTime::now();
    if shared.leaves.needs(host, now) {
        let intermediate = shared
            .supervisor
            .intermediate(&connection.identity().workload, host)
            .await
            .map_err(|error| failure::of_question("intermediate", &error))?;
        shared
            .leaves
            .add_intermediate(intermediate.as_ref().clone())
            .map_err(|error| Failure::internal("intermediate", &error))?;
    }
    shared
        .leaves
        .leaf(host, now)
        .map_err(|error| Failure::internal("leaf", &error))
}

/// Serves requests until the connection ends.
fn http1<S>(entry: Rc<Entry>, stream: S) -> impl Future<Output = ()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let limits = &entry.connection.thread.shared.limits;
    let stream = Timed::new(
        stream,
        limits.http1_deadlines(),
        entry.connection.activity.clone(),
    );
    let stream = Requests::new(stream, limits.head(), entry.notice.clone());
    let mut builder = http1::Builder::new();
    builder
        // Timed keeps its own: hyper's would also end an idle connection after the limit of a head.
        .header_read_timeout(None)
        .timer(TokioTimer::new())
        .half_close(true)
        .max_buf_size(limits.http1_buffer())
        .max_header_size(limits.header_bytes())
        // Not `pipeline_flush`: with it hyper buffers answers without a bound.
        .max_headers(limits.header_fields());
    let callers = Rc::clone(&entry);
    let service = service_fn(move |request| answer(&callers, request, None));
    let mut serving = Box::pin(
        builder
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades(),
    );
    // Not as soon as the drain begins: a connection that waits for a request would be closed under it. Its next
    // answer is the last instead.
    async move {
        let served = tokio::select! {
            served = serving.as_mut() => served,
            () = entry.connection.cut.cancelled() => return,
            () = entry.connection.thread.closing_idle.cancelled() => {
                serving.as_mut().graceful_shutdown();
                tokio::select! {
                    served = serving => served,
                    () = entry.connection.cut.cancelled() => return,
                }
            }
        };
        ended(&entry, served);
    }
}

fn answer(entry: &Rc<Entry>, request: Request<Incoming>, taking: Option<Rc<Taking>>) -> Answering {
    let refused = entry.notice.take_refused();
    request::serve(Rc::clone(entry), request, refused, taking)
}

fn ended(entry: &Entry, served: Result<(), hyper::Error>) {
    if let Err(error) = served {
        let cause = std::error::Error::source(&error)
            .map(ToString::to_string)
            .unwrap_or_default();
        tracing::debug!(client = %entry.connection.client, %error, cause, "a client connection broke off");
    }
}
