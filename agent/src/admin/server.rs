//! The admin socket: peers known and counted, requests handed to the supervisor's loop one by one.

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use super::guests::{Guest, Guests};
use super::{Enroll, Enrolled, Peer, Refused, Release, Released, Reloaded, Status};
use crate::identity::WorkloadName;

/// Longest request body, in bytes.
const MAX_BODY: usize = 64 * 1024;
/// Connections that may wait for the supervisor.
const QUEUE: usize = 64;
/// Time for a request's head, and for its body.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a peer asks of the supervisor. It is allowed to ask; for `Enroll` the supervisor looks at `exec_by`.
#[derive(Debug)]
pub enum Request {
    /// What runs?
    Status(Reply<Status>),
    /// Read the policy again.
    Reload(Reply<Reloaded>),
    /// Move the peer into a workload.
    Enroll {
        /// Who asks.
        peer: Peer,
        /// Into which.
        workload: WorkloadName,
        /// Where the answer goes.
        reply: Reply<Result<Enrolled, String>>,
    },
    /// Let a workload go.
    Release {
        /// Which.
        workload: WorkloadName,
        /// Also while processes run in it.
        running: bool,
        /// Where the answer goes.
        reply: Reply<Result<Released, String>>,
    },
}

/// Where an answer goes.
#[derive(Debug)]
pub struct Reply<T>(oneshot::Sender<T>);

impl<T> Reply<T> {
    /// Gives the answer; a peer that left meanwhile doesn't get it.
    pub fn send(self, answer: T) {
        drop(self.0.send(answer));
    }
}

/// The socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody answers there.
    #[error("another process serves the admin socket {path}; stop it, or set `admin_socket` to another path")]
    Served {
        /// The path.
        path: PathBuf,
    },
    /// Something that is not ours to remove.
    #[error("{path} is there and is no socket; move it away, or set `admin_socket` to another path")]
    Occupied {
        /// The path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("can't {what} the admin socket {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// The bound socket; dropping it removes it.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    file: SocketFile,
}

/// What is left to remove.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Gone already is as good.
        std::fs::remove_file(&self.0).ok();
    }
}

impl Socket {
    /// Binds the socket, in the place of one that nobody listens at any more. Everyone may connect, since
    /// `exec_by` may name anyone; what a peer may ask is decided by who it is.
    ///
    /// # Errors
    /// If somebody listens there, if something else is there, or if the socket can't be made.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        let failed = |what| {
            move |source| BindError::Io {
                what,
                path: path.to_owned(),
                source,
            }
        };
        remove_stale(path)?;
        let listener = UnixListener::bind(path).map_err(failed("bind"))?;
        let file = SocketFile(path.to_owned());
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).map_err(failed("open up"))?;
        Ok(Self { listener, file })
    }

    /// Serves it. `workloads` is the cgroup path that all workloads lie below: their processes are refused, root
    /// too.
    #[must_use]
    pub fn serve(self, workloads: &str) -> (Server, mpsc::Receiver<Request>) {
        let (requests, queue) = mpsc::channel(QUEUE);
        let guests = Arc::new(Guests::new(workloads));
        let task = tokio::spawn(accept(self.listener, requests, guests));
        let server = Server {
            task: task.abort_handle(),
            _file: self.file,
        };
        (server, queue)
    }
}

fn remove_stale(path: &Path) -> Result<(), BindError> {
    let path_buf = || path.to_owned();
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(BindError::Occupied { path: path_buf() }),
        Ok(_) | Err(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(BindError::Served { path: path_buf() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // Its owner is gone.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|source| BindError::Io {
                what: "replace",
                path: path_buf(),
                source,
            })
        }
        Err(source) => Err(BindError::Io {
            what: "look at",
            path: path_buf(),
            source,
        }),
    }
}

/// The server; dropping it ends it and removes the socket.
#[derive(Debug)]
pub struct Server {
    task: AbortHandle,
    _file: SocketFile,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: UnixListener, requests: mpsc::Sender<Request>, guests: Arc<Guests>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => match guests.admit(&stream) {
                Ok(guest) => {
                    tokio::spawn(serve(stream, guest, requests.clone()));
                }
                Err(reason) => tracing::debug!(%reason, "the admin socket turns a connection away"),
            },
            Err(error) => {
                tracing::error!(%error, "the admin socket can't accept; trying again");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// One request: the peer of a second one might be another by then.
async fn serve(stream: UnixStream, guest: Guest, requests: mpsc::Sender<Request>) {
    let guest = Arc::new(guest);
    let service = service_fn(move |request| {
        let (requests, guest) = (requests.clone(), Arc::clone(&guest));
        async move {
            let answer = match guest.peer() {
                Ok(peer) => answer(peer, request, &requests).await,
                Err(why) => refused(StatusCode::FORBIDDEN, why),
            };
            Ok::<_, Infallible>(answer)
        }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "an admin connection broke off");
    }
}

type Answer = hyper::Response<Full<Bytes>>;

async fn answer(peer: Peer, request: hyper::Request<Incoming>, requests: &mpsc::Sender<Request>) -> Answer {
    let (head, body) = request.into_parts();
    match (&head.method, head.uri.path()) {
        (&Method::GET, "/v1/status") if peer.uid == 0 => tell(
            ask(requests, Request::Status)
                .await
                .map(|status| json(StatusCode::OK, &status)),
        ),
        (&Method::POST, "/v1/reload") if peer.uid == 0 => tell(
            ask(requests, Request::Reload)
                .await
                .map(|done| json(StatusCode::OK, &done)),
        ),
        (&Method::POST, "/v1/enroll") => enroll(peer, body, requests).await,
        (&Method::POST, "/v1/release") if peer.uid == 0 => release(body, requests).await,
        (_, "/v1/status" | "/v1/reload" | "/v1/release") => {
            refused(StatusCode::FORBIDDEN, "only root may ask this, with GET or POST")
        }
        _ => refused(
            StatusCode::NOT_FOUND,
            "there is GET /v1/status, POST /v1/reload, POST /v1/enroll and POST /v1/release",
        ),
    }
}

async fn enroll(peer: Peer, body: Incoming, requests: &mpsc::Sender<Request>) -> Answer {
    let body = match read(body).await {
        Ok(body) => body,
        Err(refused) => return refused,
    };
    let workload = serde_json::from_slice::<Enroll>(&body)
        .ok()
        .and_then(|asked| WorkloadName::parse(&asked.workload).ok());
    let Some(workload) = workload else {
        return refused(
            StatusCode::BAD_REQUEST,
            "the body must be {\"workload\": \"NAME\"}",
        );
    };
    let asked = ask(requests, |reply| Request::Enroll {
        peer,
        workload,
        reply,
    })
    .await;
    tell(asked.map(|result| match result {
        Ok(enrolled) => json(StatusCode::OK, &enrolled),
        Err(why) => refused(StatusCode::FORBIDDEN, &why),
    }))
}

async fn release(body: Incoming, requests: &mpsc::Sender<Request>) -> Answer {
    let body = match read(body).await {
        Ok(body) => body,
        Err(refused) => return refused,
    };
    let asked = serde_json::from_slice::<Release>(&body)
        .ok()
        .and_then(|asked| Some((WorkloadName::parse(&asked.workload).ok()?, asked.running)));
    let Some((workload, running)) = asked else {
        return refused(
            StatusCode::BAD_REQUEST,
            "the body must be {\"workload\": \"NAME\", \"running\": false}",
        );
    };
    let asked = ask(requests, |reply| Request::Release {
        workload,
        running,
        reply,
    })
    .await;
    tell(asked.map(|result| match result {
        Ok(released) => json(StatusCode::OK, &released),
        Err(why) => refused(StatusCode::CONFLICT, &why),
    }))
}

async fn read(body: Incoming) -> Result<Bytes, Answer> {
    let read = tokio::time::timeout(PATIENCE, Limited::new(body, MAX_BODY).collect()).await;
    match read {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(_)) | Err(_) => Err(refused(
            StatusCode::BAD_REQUEST,
            "the request's body is too long or too slow, or broke off",
        )),
    }
}

async fn ask<T>(requests: &mpsc::Sender<Request>, request: impl FnOnce(Reply<T>) -> Request) -> Option<T> {
    let (reply, answer) = oneshot::channel();
    requests.send(request(Reply(reply))).await.ok()?;
    answer.await.ok()
}

fn tell(answer: Option<Answer>) -> Answer {
    answer.unwrap_or_else(|| refused(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping"))
}

fn refused(status: StatusCode, why: &str) -> Answer {
    json(
        status,
        &Refused {
            error: why.to_owned(),
        },
    )
}

fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    // These types hold nothing that JSON can't express.
    let body = serde_json::to_vec(value).unwrap_or_default();
    let mut answer = hyper::Response::new(Full::from(body));
    *answer.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static("application/json");
    answer.headers_mut().insert(hyper::header::CONTENT_TYPE, kind);
    answer
}
