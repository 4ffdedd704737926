//! The worker's end: what the supervisor pushes, as events, and a handle for questions.
//!
//! The tasks that own the socket live on the runtime that called [`Channel::open`] (control); a [`Client`] may be
//! used from any thread and runtime.

mod event;
mod pending;

use std::collections::HashMap;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

pub use event::{Event, StartDescriptors};
use pending::{Pending, Waiter, Waiters};

use super::frame::{FrameError, Reader, Writer, split};
use super::{Figures, Intermediate, MAX_TO_SUPERVISOR, MAX_TO_WORKER, Refusal, ToSupervisor, ToWorker};
use crate::addr::HostName;
use crate::identity::{Executable, Identity, WorkloadName};

/// Longest wait for an answer: a digest of a large executable takes a second or two.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a question has no answer. Each of these denies.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// The supervisor said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Too many questions are open.
    #[error("too many questions to the supervisor are open")]
    Busy,
    /// Too many are asked on behalf of this workload.
    #[error("the workload makes the agent ask for more than it may")]
    Limit,
    /// No answer came in time.
    #[error("the supervisor did not answer within 10 s")]
    TimedOut,
    /// The channel is closed.
    #[error("the supervisor is gone")]
    Closed,
}

/// The stream of events. When it ends, the supervisor is gone and the worker has to exit.
#[derive(Debug)]
pub struct Channel {
    events: mpsc::Receiver<Result<Event, FrameError>>,
}

impl Channel {
    /// Takes over the inherited descriptor. Must be called within the control runtime, which has to go on
    /// running for as long as the channel or a client is used.
    ///
    /// # Errors
    /// If the descriptor is no socket that can be polled.
    pub fn open(socket: OwnedFd) -> Result<(Self, Client), FrameError> {
        let (reader, writer) = split(socket, MAX_TO_WORKER)?;
        let (outgoing, queue) = mpsc::channel(1024);
        let (pushed, events) = mpsc::channel(64);
        let pending = Arc::new(Pending::default());
        tokio::spawn(write_all(writer, queue));
        tokio::spawn(read_all(reader, pushed, Arc::clone(&pending)));
        let client = Client {
            outgoing,
            pending,
            next: Arc::new(AtomicU64::new(1)),
        };
        Ok((Self { events }, client))
    }

    /// The next event; `None` once the supervisor closed the channel. Dropping the future loses nothing.
    ///
    /// # Errors
    /// If the channel is broken; it ends then.
    pub async fn next(&mut self) -> Result<Option<Event>, FrameError> {
        self.events.recv().await.transpose()
    }
}

/// Asks the supervisor; cheap to clone, usable from every thread and runtime.
#[derive(Clone, Debug)]
pub struct Client {
    outgoing: mpsc::Sender<ToSupervisor>,
    pending: Arc<Pending>,
    next: Arc<AtomicU64>,
}

impl Client {
    /// Who is behind this kernel record of `workload`; with the executable's digest if a rule needs it.
    ///
    /// # Errors
    /// Whatever is returned, the connection has no identity and is denied.
    pub async fn identify(
        &self,
        workload: &WorkloadName,
        origin: &[u8],
        digest: bool,
    ) -> Result<Identity, AskError> {
        let _open = self.pending.open(workload)?;
        let (request, answer) = self.register(|waiters| &mut waiters.identities)?;
        let ask = ToSupervisor::Identify {
            request,
            origin: origin.to_vec(),
            digest,
        };
        let answered = self.ask(ask, answer).await;
        self.pending.lock().identities.remove(&request);
        Ok(*answered?)
    }

    /// What the process behind this kernel record runs now.
    ///
    /// # Errors
    /// Whatever is returned, the executable is unknown.
    pub async fn executable(
        &self,
        workload: &WorkloadName,
        origin: &[u8],
        digest: bool,
    ) -> Result<Executable, AskError> {
        let _open = self.pending.open(workload)?;
        let (request, answer) = self.register(|waiters| &mut waiters.executables)?;
        let ask = ToSupervisor::Executable {
            request,
            origin: origin.to_vec(),
            digest,
        };
        let answered = self.ask(ask, answer).await;
        self.pending.lock().executables.remove(&request);
        answered
    }

    /// A TCP socket in the network namespace that this kernel record of `workload` tells of.
    ///
    /// # Errors
    /// Whatever is returned, nothing can be connected from there.
    pub async fn socket(
        &self,
        workload: &WorkloadName,
        origin: &[u8],
        v6: bool,
    ) -> Result<std::net::TcpStream, AskError> {
        let _open = self.pending.open(workload)?;
        let (request, answer) = self.register(|waiters| &mut waiters.sockets)?;
        let ask = ToSupervisor::Socket {
            request,
            origin: origin.to_vec(),
            v6,
        };
        let answered = self.ask(ask, answer).await;
        self.pending.lock().sockets.remove(&request);
        answered.map(std::net::TcpStream::from)
    }

    /// An intermediate for this host, asked for on behalf of `workload`; askers of one host at one time share one question.
    ///
    /// # Errors
    /// Without one no leaf can be minted and the connection fails.
    pub async fn intermediate(
        &self,
        workload: &WorkloadName,
        host: &HostName,
    ) -> Result<Arc<Intermediate>, AskError> {
        let _open = self.pending.open(workload)?;
        let (sender, answer) = oneshot::channel();
        let first = self.pending.join(workload, host, sender)?;
        if first
            && self
                .send(ToSupervisor::Intermediate { host: host.clone() })
                .await
                .is_err()
        {
            drop(self.pending.lock().take_intermediate(host));
            return Err(AskError::Closed);
        }
        let answered = settle(answer).await;
        if matches!(answered, Err(AskError::TimedOut)) {
            drop(self.pending.lock().take_intermediate(host));
        }
        answered
    }

    /// Whether the supervisor sent the process whose connection to [`super::CANARY`] this kernel record of `workload` is of.
    ///
    /// # Errors
    /// Whatever is returned, it is one like any other.
    pub async fn canary(&self, workload: &WorkloadName, origin: &[u8]) -> Result<bool, AskError> {
        let _open = self.pending.open(workload)?;
        let (request, answer) = self.register(|waiters| &mut waiters.canaries)?;
        let ask = ToSupervisor::Canary {
            request,
            origin: origin.to_vec(),
        };
        let answered = self.ask(ask, answer).await;
        self.pending.lock().canaries.remove(&request);
        answered
    }

    /// Says that listeners are being served.
    ///
    /// # Errors
    /// If the supervisor is gone.
    pub async fn ready(&self) -> Result<(), AskError> {
        self.send(ToSupervisor::Ready).await
    }

    /// Says that every thread uses this policy.
    ///
    /// # Errors
    /// If the supervisor is gone.
    pub async fn policy_applied(&self, generation: u64) -> Result<(), AskError> {
        self.send(ToSupervisor::PolicyApplied { generation }).await
    }

    /// Answers [`Event::Status`].
    ///
    /// # Errors
    /// If the supervisor is gone.
    pub async fn status(&self, request: u64, figures: Figures) -> Result<(), AskError> {
        self.send(ToSupervisor::Status { request, figures }).await
    }

    /// Whether an answer is waited for.
    #[must_use]
    pub fn is_asking(&self) -> bool {
        !self.pending.lock().is_empty()
    }

    /// Says that no connection needs the supervisor any more to begin.
    ///
    /// # Errors
    /// If the supervisor is gone.
    pub async fn settled(&self) -> Result<(), AskError> {
        self.send(ToSupervisor::Settled).await
    }

    /// Says that the drain is over.
    ///
    /// # Errors
    /// If the supervisor is gone.
    pub async fn drained(&self) -> Result<(), AskError> {
        self.send(ToSupervisor::Drained).await
    }

    /// Says why the worker can't go on.
    ///
    /// # Errors
    /// If the supervisor is gone.
    pub async fn fault(&self, message: String) -> Result<(), AskError> {
        self.send(ToSupervisor::Fault { message }).await
    }

    async fn send(&self, message: ToSupervisor) -> Result<(), AskError> {
        self.outgoing.send(message).await.or(Err(AskError::Closed))
    }

    async fn ask<T>(
        &self,
        message: ToSupervisor,
        answer: oneshot::Receiver<Result<T, Refusal>>,
    ) -> Result<T, AskError> {
        self.send(message).await?;
        settle(answer).await
    }

    fn register<T>(
        &self,
        table: impl FnOnce(&mut Waiters) -> &mut HashMap<u64, Waiter<T>>,
    ) -> Result<(u64, oneshot::Receiver<Result<T, Refusal>>), AskError> {
        let request = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        let mut waiters = self.pending.lock();
        waiters.has_room()?;
        table(&mut waiters).insert(request, sender);
        Ok((request, answer))
    }
}

async fn settle<T>(answer: oneshot::Receiver<Result<T, Refusal>>) -> Result<T, AskError> {
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(result)) => Ok(result?),
        Ok(Err(_closed)) => Err(AskError::Closed),
        Err(_elapsed) => Err(AskError::TimedOut),
    }
}

async fn write_all(mut writer: Writer, mut queue: mpsc::Receiver<ToSupervisor>) {
    while let Some(message) = queue.recv().await {
        if let Err(error) = writer.send(&message, &[], MAX_TO_SUPERVISOR).await {
            tracing::error!(%error, "can't reach the supervisor");
            return;
        }
    }
}

async fn read_all(
    mut reader: Reader,
    events: mpsc::Sender<Result<Event, FrameError>>,
    pending: Arc<Pending>,
) {
    loop {
        let event = match reader.next::<ToWorker>().await {
            Ok(Some((message, descriptors))) => sort(message, descriptors, &pending).transpose(),
            Ok(None) => break,
            Err(error) => Some(Err(error)),
        };
        let Some(event) = event else { continue };
        let broken = event.is_err();
        if events.send(event).await.is_err() || broken {
            break;
        }
    }
    pending.lock().close();
}

/// Hands an answer to who asked for it; all else becomes an event.
fn sort(
    message: ToWorker,
    descriptors: Vec<OwnedFd>,
    pending: &Pending,
) -> Result<Option<Event>, FrameError> {
    let event = match message {
        ToWorker::Start(start) => {
            let [origins, liveness, audit, inflight] = exactly(descriptors)?;
            let descriptors = StartDescriptors {
                origins,
                liveness,
                audit,
                inflight,
            };
            return Ok(Some(Event::Start(start, descriptors)));
        }
        ToWorker::Listener(info) => {
            let [socket] = exactly(descriptors)?;
            let socket = TcpListener::from(socket);
            socket.set_nonblocking(true)?;
            return Ok(Some(Event::Listener(info, socket)));
        }
        ToWorker::Names(info) => {
            let [socket] = exactly(descriptors)?;
            let socket = UdpSocket::from(socket);
            socket.set_nonblocking(true)?;
            return Ok(Some(Event::Names(info, socket)));
        }
        ToWorker::Socket { request, result } => {
            let waiter = pending.lock().sockets.remove(&request);
            match result {
                Ok(()) => {
                    let [socket] = exactly(descriptors)?;
                    answer(waiter, Ok(socket));
                }
                Err(refusal) => {
                    let [] = exactly(descriptors)?;
                    answer(waiter, Err(refusal));
                }
            }
            return Ok(None);
        }
        ToWorker::Leave { deadline_ms, idle_ms } => {
            let [baton] = exactly(descriptors)?;
            return Ok(Some(Event::Leave {
                deadline: Duration::from_millis(deadline_ms),
                idle: Duration::from_millis(idle_ms),
                baton: baton.into(),
            }));
        }
        ToWorker::AuditFile => {
            let [file] = exactly(descriptors)?;
            return Ok(Some(Event::AuditFile(file)));
        }
        ToWorker::Policy { generation, sources } => Some(Event::Policy { generation, sources }),
        ToWorker::Credential { name, state } => Some(Event::Credential { name, state }),
        ToWorker::Unlisten { workload, netns } => Some(Event::Unlisten { workload, netns }),
        ToWorker::Drain { deadline_ms, idle_ms } => Some(Event::Drain {
            deadline: Duration::from_millis(deadline_ms),
            idle: Duration::from_millis(idle_ms),
        }),
        ToWorker::Roots { certificates } => Some(Event::Roots { certificates }),
        ToWorker::Memory { short } => Some(Event::Memory { short }),
        ToWorker::Status { request } => Some(Event::Status { request }),
        ToWorker::Intermediate { host, result } => answer_intermediate(host, result, pending),
        ToWorker::Identity { request, result } => {
            let waiter = pending.lock().identities.remove(&request);
            answer(waiter, result);
            None
        }
        ToWorker::Canary { request, sent } => {
            let waiter = pending.lock().canaries.remove(&request);
            answer(waiter, Ok(sent));
            None
        }
        ToWorker::Executable { request, result } => {
            let waiter = pending.lock().executables.remove(&request);
            answer(waiter, result);
            None
        }
    };
    let [] = exactly(descriptors)?;
    Ok(event)
}

fn answer_intermediate(
    host: HostName,
    result: Result<Intermediate, Refusal>,
    pending: &Pending,
) -> Option<Event> {
    let result = result.map(Arc::new);
    for waiter in pending.lock().take_intermediate(&host) {
        answer(Some(waiter), result.clone());
    }
    let intermediate = result.ok()?;
    Some(Event::Intermediate { host, intermediate })
}

/// An asker that gave up meanwhile has dropped its end.
fn answer<T>(waiter: Option<Waiter<T>>, result: Result<T, Refusal>) {
    if let Some(waiter) = waiter {
        drop(waiter.send(result));
    }
}

fn exactly<const N: usize>(descriptors: Vec<OwnedFd>) -> Result<[OwnedFd; N], FrameError> {
    let got = descriptors.len();
    <[OwnedFd; N]>::try_from(descriptors).map_err(|_descriptors| FrameError::Descriptors { expected: N, got })
}
