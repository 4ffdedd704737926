//! Asks the agent over its admin socket.

use std::path::{Path, PathBuf};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::Refused;

/// Longest answer, in bytes.
const MAX_ANSWER: usize = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens.
    #[error("the agent does not answer at {path}: {source} (is callgate running?)")]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The agent said no.
    #[error("the agent refuses: {0}")]
    Refused(String),
    /// It closed the connection.
    #[error("the agent closes the connection without an answer: too many are open, or it is stopping")]
    TurnedAway,
    /// The answer made no sense.
    #[error("the agent's answer can't be read: {0}")]
    Broken(String),
}

/// A connection that ends without an answer was turned away.
fn unanswered(error: hyper::Error) -> Error {
    if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        Error::TurnedAway
    } else {
        broken(error)
    }
}

fn broken(error: impl std::fmt::Display) -> Error {
    Error::Broken(error.to_string())
}

/// Sends one request and waits for its answer.
///
/// # Errors
/// See [`Error`].
pub fn ask<T: DeserializeOwned>(socket: &Path, method: &str, path: &str, body: Vec<u8>) -> Result<T, Error> {
    let unreachable = |source| Error::Unreachable {
        path: socket.to_path_buf(),
        source,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(unreachable)?;
    runtime.block_on(async {
        let stream = UnixStream::connect(socket).await.map_err(unreachable)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        let driven = tokio::spawn(connection);
        let request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header("host", "callgate")
            .body(Full::new(Bytes::from(body)))
            .map_err(broken)?;
        let response = sender.send_request(request).await.map_err(unanswered)?;
        let ok = response.status().is_success();
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(broken)?
            .to_bytes();
        driven.abort();
        if ok {
            return serde_json::from_slice(&body).map_err(broken);
        }
        let refused: Refused = serde_json::from_slice(&body).map_err(broken)?;
        Err(Error::Refused(refused.error))
    })
}
