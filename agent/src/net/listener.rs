//! Accepting connections, and what to do when that fails.

use std::future::Future;
use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::TcpListener;

use crate::addr::ClientAddr;

/// A connection as it comes from a listener.
#[derive(Debug)]
pub struct Accepted {
    /// The connection, non-blocking.
    pub stream: TcpStream,
    /// The client's end, as accept(2) told it: asking later fails on a connection that was reset.
    pub client: ClientAddr,
    /// One of the workload's connections, counted until this is dropped; `None`: the workload has too many.
    pub slot: Option<Slot>,
}

/// How many connections one workload may hold; shared by its listeners.
#[derive(Clone, Debug)]
pub struct Quota {
    held: Arc<AtomicUsize>,
    limit: usize,
}

impl Quota {
    /// A quota of `limit` connections, none held.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { held: Arc::default(), limit }
    }

    /// How many connections are held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    fn take(&self) -> Option<Slot> {
        let slot = Slot(Arc::clone(&self.held));
        let before = self.held.fetch_add(1, Ordering::Relaxed);
        (before < self.limit).then_some(slot)
    }
}

/// A place in a [`Quota`].
#[derive(Debug)]
pub struct Slot(Arc<AtomicUsize>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Accepts until `stop` is done, handing each connection on.
pub async fn accept(
    listener: TcpListener,
    quota: Quota,
    stop: impl Future<Output = ()>,
    mut deliver: impl FnMut(Accepted),
) {
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stop => return,
            accepted = listener.accept() => accepted,
        };
        match accepted.and_then(|(stream, client)| prepare(stream).map(|stream| (stream, client))) {
            Ok((stream, client)) => deliver(Accepted { stream, client: ClientAddr(client), slot: quota.take() }),
            Err(error) if is_of_the_connection(&error) => {
                tracing::debug!(%error, "a connection was gone before it was accepted");
            }
            Err(error) => {
                tracing::error!(%error, "can't accept connections; trying again");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn prepare(stream: tokio::net::TcpStream) -> io::Result<TcpStream> {
    // A small answer must not wait for the acknowledgement of the one before it.
    stream.set_nodelay(true)?;
    stream.into_std()
}

/// accept(2) also reports what had happened to the connection before it was taken.
fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
            | io::ErrorKind::InvalidInput
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_gives_no_more_than_its_limit_and_takes_slots_back() {
        let quota = Quota::new(2);
        let (first, second) = (quota.take(), quota.take());
        assert!(first.is_some() && second.is_some());
        assert!(quota.take().is_none());
        assert_eq!(quota.held(), 2);
        drop(first);
        assert!(quota.take().is_some());
    }
}
