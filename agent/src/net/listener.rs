//! Accepting connections, and what to do when that fails.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use super::cork;
use crate::addr::ClientAddr;
use crate::budget::Lines;

/// A connection as it comes from a listener.
#[derive(Debug)]
pub struct Accepted {
    /// The connection.
    pub stream: Stream,
    /// The client's end, as accept(2) told it: asking later fails on a connection that was reset.
    pub client: ClientAddr,
    /// Its place among the workload's connections, until this is dropped; or that there is none.
    pub slot: Result<Slot, TooMany>,
}

/// A connection's socket, where it was accepted or on its way to another thread.
#[derive(Debug)]
pub enum Stream {
    /// The thread that accepted it waits for it.
    Here(TcpStream),
    /// Nobody does.
    OnItsWay(std::net::TcpStream),
}

impl Stream {
    /// For another thread.
    ///
    /// # Errors
    /// If it can't be taken from this one.
    pub fn leave(self) -> io::Result<Self> {
        match self {
            Self::Here(stream) => stream.into_std().map(Self::OnItsWay),
            Self::OnItsWay(_) => Ok(self),
        }
    }

    /// To be served by this thread.
    ///
    /// # Errors
    /// If this thread can't wait for it.
    pub fn arrive(self) -> io::Result<TcpStream> {
        match self {
            Self::Here(stream) => Ok(stream),
            Self::OnItsWay(stream) => TcpStream::from_std(stream),
        }
    }
}

/// What buffers of a connection, or of a call under way, come to; taken for each when it begins. An idle TLS
/// connection was measured at 19 KiB; a call adds the upstream's side, and one whose client takes nothing of a long answer
/// was measured at 171 KiB with its connection. It is also what an HTTP/2 connection gathers while it has calls ([`cork`]).
pub const BUFFERS: usize = 32 * 1024;
const _: () = assert!(cork::CAPACITY <= BUFFERS, "what is gathered is not all counted");

/// Connections over a workload's limit that wait to be refused one by one.
const MAX_TOO_MANY: usize = 64;

/// How many connections one workload may hold, and how many bytes of buffers for them and their calls; shared by
/// its listeners.
#[derive(Clone, Debug)]
pub struct Quota(Arc<Held>);

#[derive(Debug)]
struct Held {
    connections: AtomicUsize,
    too_many: AtomicUsize,
    buffers: AtomicUsize,
    max_connections: usize,
    max_buffers: usize,
}

impl Quota {
    /// A quota of which nothing is held.
    #[must_use]
    pub fn new(connections: usize, buffers: usize) -> Self {
        Self(Arc::new(Held {
            connections: AtomicUsize::new(0),
            too_many: AtomicUsize::new(0),
            buffers: AtomicUsize::new(0),
            max_connections: connections,
            max_buffers: buffers,
        }))
    }

    /// How many connections are held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.0.connections.load(Ordering::Relaxed)
    }

    fn take(&self) -> Option<Slot> {
        let slot = Slot(self.buffers()?);
        let before = self.0.connections.fetch_add(1, Ordering::Relaxed);
        // Dropping the slot takes both back.
        (before < self.0.max_connections).then_some(slot)
    }

    fn too_many(&self) -> Option<TooMany> {
        let one = TooMany(self.clone());
        let before = self.0.too_many.fetch_add(1, Ordering::Relaxed);
        (before < MAX_TOO_MANY).then_some(one)
    }

    fn buffers(&self) -> Option<Buffers> {
        let buffers = Buffers(self.clone());
        let before = self.0.buffers.fetch_add(BUFFERS, Ordering::Relaxed);
        (before + BUFFERS <= self.0.max_buffers).then_some(buffers)
    }
}

/// [`BUFFERS`] bytes of a [`Quota`].
#[derive(Debug)]
pub struct Buffers(Quota);

impl Drop for Buffers {
    fn drop(&mut self) {
        self.0.0.buffers.fetch_sub(BUFFERS, Ordering::Relaxed);
    }
}

/// A connection's place in a [`Quota`].
#[derive(Debug)]
pub struct Slot(Buffers);

impl Slot {
    /// Buffers for a call on this connection, or for what it gathers; `None`: the workload holds too many.
    #[must_use]
    pub fn buffers(&self) -> Option<Buffers> {
        self.0.0.buffers()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.0.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection over the workload's limit, on its way to be refused with a record of its own.
#[derive(Debug)]
pub struct TooMany(Quota);

impl Drop for TooMany {
    fn drop(&mut self) {
        self.0.0.too_many.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Accepts until `stop` is done, handing each connection on. Those of a flood that is faster than they can be refused
/// are closed at once, and told to `flood`: they would take up descriptors that other workloads need.
pub async fn accept(
    listener: TcpListener,
    quota: Quota,
    stop: impl Future<Output = ()>,
    mut deliver: impl FnMut(Accepted),
    flood: impl Fn(),
) {
    tokio::pin!(stop);
    let lines = Lines::<()>::default();
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stop => return,
            accepted = listener.accept() => accepted,
        };
        match accepted.and_then(|(stream, client)| prompt(stream).map(|stream| (stream, client))) {
            Ok((stream, client)) => match place(&quota) {
                Some(slot) => deliver(Accepted {
                    stream: Stream::Here(stream),
                    client: ClientAddr(client),
                    slot,
                }),
                None => flood(),
            },
            Err(error) if is_of_the_connection(&error) => {
                tracing::debug!(%error, "a connection was gone before it was accepted");
            }
            Err(error) => {
                if let Some(left_out) = lines.next(&()) {
                    tracing::error!(%error, left_out, "can't accept connections; trying again");
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn place(quota: &Quota) -> Option<Result<Slot, TooMany>> {
    match quota.take() {
        Some(slot) => Some(Ok(slot)),
        None => quota.too_many().map(Err),
    }
}

/// A small answer must not wait for the acknowledgement of the one before it.
fn prompt(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    Ok(stream)
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
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[test]
    fn a_connection_is_served_by_the_thread_that_it_was_handed_to() {
        let runtime = || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
        };
        let (accepting, serving) = (runtime(), runtime());
        let (mut client, stream) = accepting.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            (client, Stream::Here(stream).leave().unwrap())
        });
        drop(accepting);
        io::Write::write_all(&mut client, b"x").unwrap();
        let mut byte = [0];
        serving
            .block_on(async { stream.arrive().unwrap().read_exact(&mut byte).await })
            .unwrap();
        assert_eq!(&byte, b"x");
    }

    #[test]
    fn a_quota_gives_no_more_than_its_limit_and_takes_slots_back() {
        let quota = Quota::new(2, 10 * BUFFERS);
        let (first, second) = (quota.take(), quota.take());
        assert!(first.is_some() && second.is_some());
        assert!(quota.take().is_none());
        assert_eq!(quota.held(), 2);
        drop(first);
        assert!(quota.take().is_some());
    }

    #[test]
    fn a_few_over_the_limit_are_refused_one_by_one_and_a_flood_at_once() {
        let quota = Quota::new(1, 10 * BUFFERS);
        let _held = quota.take().unwrap();
        let waiting: Vec<_> = (0..MAX_TOO_MANY).map(|_| place(&quota)).collect();
        assert!(waiting.iter().all(|place| matches!(place, Some(Err(_)))));
        assert!(place(&quota).is_none());
        drop(waiting);
        assert!(place(&quota).is_some());
    }

    #[test]
    fn connections_and_calls_share_the_buffers() {
        let quota = Quota::new(100, 3 * BUFFERS);
        let first = quota.take().unwrap();
        let call = first.buffers().unwrap();
        let second = quota.take().unwrap();
        assert!(second.buffers().is_none() && quota.take().is_none());
        assert_eq!(quota.held(), 2);
        drop(call);
        assert!(second.buffers().is_some());
        drop((first, second));
        assert_eq!((quota.held(), quota.0.buffers.load(Ordering::Relaxed)), (0, 0));
    }
}
