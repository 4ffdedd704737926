//! The supervisor's end. The worker reads what the network sends, so nothing that comes up is believed:
//! frames are bounded in size and rate, contents are parsed again, and one breach ends the worker.

use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::frame::{FrameError, Reader, Writer, split};
use super::worker::StartDescriptors;
use super::{ListenerInfo, MAX_TO_SUPERVISOR, MAX_TO_WORKER, Start, ToSupervisor, ToWorker};

/// Messages that a worker may send in one second: well above what its connections can ask for.
const MAX_RATE: u32 = 50_000;
/// Longest kernel record that a question may carry, in bytes.
const MAX_ORIGIN: usize = 512;
/// Longest text of a fault, in bytes.
const MAX_FAULT: usize = 4096;

/// Why a worker is ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Breach {
    /// The channel is broken, or what came is no message.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Too many messages.
    #[error("the worker sent more than {MAX_RATE} messages in one second")]
    Flood,
    /// A field is out of its bounds.
    #[error("the worker sent a message with a bad {field}")]
    Field {
        /// Which one.
        field: &'static str,
    },
}

/// Sends to one worker; cheap to clone.
#[derive(Clone, Debug)]
pub struct Sender {
    queue: mpsc::Sender<(ToWorker, Vec<OwnedFd>)>,
}

/// The worker's end is closed, or it has not taken messages for so long that its queue is full.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the worker does not take messages any more")]
pub struct WorkerGone;

/// Messages that wait for a worker: a first hand-over of ten thousand workloads, and then some. Nobody who sends
/// waits: the supervisor has other workers to see to.
const QUEUE: usize = 65_536;

impl Sender {
    /// Sends the first message.
    ///
    /// # Errors
    /// If the worker is gone.
    pub fn start(&self, start: Start, descriptors: StartDescriptors) -> Result<(), WorkerGone> {
        let StartDescriptors {
            origins,
            liveness,
            audit,
            inflight,
        } = descriptors;
        let descriptors = vec![origins, liveness, audit, inflight];
        self.queue(ToWorker::Start(Box::new(start)), descriptors)
    }

    /// Hands a listener over; the socket is a duplicate, so the port stays the supervisor's.
    ///
    /// # Errors
    /// If the worker is gone.
    pub fn listener(&self, info: ListenerInfo, socket: TcpListener) -> Result<(), WorkerGone> {
        self.queue(ToWorker::Listener(info), vec![socket.into()])
    }

    /// Hands the socket over on which a workload's questions about names arrive.
    ///
    /// # Errors
    /// If the worker is gone.
    pub fn names(&self, info: ListenerInfo, socket: UdpSocket) -> Result<(), WorkerGone> {
        self.queue(ToWorker::Names(info), vec![socket.into()])
    }

    /// Answers a question with what belongs to the answer.
    ///
    /// # Errors
    /// If the worker is gone.
    pub fn answer(&self, message: ToWorker, descriptor: Option<OwnedFd>) -> Result<(), WorkerGone> {
        self.queue(message, descriptor.into_iter().collect())
    }

    /// Hands a new audit file over.
    ///
    /// # Errors
    /// If the worker is gone.
    pub fn audit_file(&self, file: OwnedFd) -> Result<(), WorkerGone> {
        self.queue(ToWorker::AuditFile, vec![file])
    }

    /// Tells it that this supervisor goes; see [`ToWorker::Leave`].
    ///
    /// # Errors
    /// If the worker is gone.
    pub fn leave(&self, deadline: Duration, idle: Duration, baton: UnixStream) -> Result<(), WorkerGone> {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let message = ToWorker::Leave {
            deadline_ms: millis(deadline),
            idle_ms: millis(idle),
        };
        self.queue(message, vec![baton.into()])
    }

    /// Sends a message that has no descriptors.
    ///
    /// # Errors
    /// If the worker is gone.
    pub fn send(&self, message: ToWorker) -> Result<(), WorkerGone> {
        self.queue(message, Vec::new())
    }

    fn queue(&self, message: ToWorker, descriptors: Vec<OwnedFd>) -> Result<(), WorkerGone> {
        self.queue.try_send((message, descriptors)).or(Err(WorkerGone))
    }
}

/// Receives from one worker.
#[derive(Debug)]
pub struct Receiver {
    reader: Reader,
    window: Instant,
    seen: u32,
}

/// Takes the supervisor's end into use. Must be called within a tokio runtime.
///
/// # Errors
/// If the socket can't be polled.
pub fn open(socket: OwnedFd) -> Result<(Sender, Receiver), FrameError> {
    let (reader, writer) = split(socket, MAX_TO_SUPERVISOR)?;
    let (queue, outgoing) = mpsc::channel(QUEUE);
    tokio::spawn(write_all(writer, outgoing));
    let receiver = Receiver {
        reader,
        window: Instant::now(),
        seen: 0,
    };
    Ok((Sender { queue }, receiver))
}

impl Receiver {
    /// The next message, checked; `None` once the worker has closed its end. Dropping the future loses nothing.
    ///
    /// # Errors
    /// A [`Breach`]: end the worker.
    pub async fn next(&mut self) -> Result<Option<ToSupervisor>, Breach> {
        let Some((message, descriptors)) = self.reader.next::<ToSupervisor>().await? else {
            return Ok(None);
        };
        if !descriptors.is_empty() {
            return Err(FrameError::Descriptors {
                expected: 0,
                got: descriptors.len(),
            }
            .into());
        }
        self.count()?;
        check(&message)?;
        Ok(Some(message))
    }

    fn count(&mut self) -> Result<(), Breach> {
        if self.window.elapsed() >= Duration::from_secs(1) {
            self.window = Instant::now();
            self.seen = 0;
        }
        self.seen += 1;
        if self.seen > MAX_RATE {
            return Err(Breach::Flood);
        }
        Ok(())
    }
}

/// Names are checked by their types while they are read; this is the rest.
fn check(message: &ToSupervisor) -> Result<(), Breach> {
    match message {
        ToSupervisor::Identify { origin, .. }
        | ToSupervisor::Executable { origin, .. }
        | ToSupervisor::Socket { origin, .. }
        | ToSupervisor::Canary { origin, .. }
            if origin.is_empty() || origin.len() > MAX_ORIGIN =>
        {
            Err(Breach::Field { field: "origin" })
        }
        ToSupervisor::Fault { message } if message.len() > MAX_FAULT => {
            Err(Breach::Field { field: "fault text" })
        }
        ToSupervisor::Ready
        | ToSupervisor::PolicyApplied { .. }
        | ToSupervisor::Identify { .. }
        | ToSupervisor::Executable { .. }
        | ToSupervisor::Socket { .. }
        | ToSupervisor::Canary { .. }
        | ToSupervisor::Intermediate { .. }
        | ToSupervisor::Status { .. }
        | ToSupervisor::Settled
        | ToSupervisor::Drained
        | ToSupervisor::Fault { .. } => Ok(()),
    }
}

async fn write_all(mut writer: Writer, mut outgoing: mpsc::Receiver<(ToWorker, Vec<OwnedFd>)>) {
    while let Some((message, descriptors)) = outgoing.recv().await {
        if let Err(error) = writer.send(&message, &descriptors, MAX_TO_WORKER).await {
            tracing::warn!(%error, "a message to the worker was lost");
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::frame::pair;

    #[tokio::test]
    async fn a_worker_that_floods_is_in_breach() {
        let (above, below) = pair().unwrap();
        let (_sender, mut receiver) = open(above).unwrap();
        let (_reader, mut writer) = split(below, MAX_TO_WORKER).unwrap();
        // As if the rest of the second's messages had come already.
        receiver.window = Instant::now() + Duration::from_secs(60);
        receiver.seen = MAX_RATE - 1;
        for _ in 0..2 {
            writer
                .send(&ToSupervisor::Ready, &[], MAX_TO_SUPERVISOR)
                .await
                .unwrap();
        }
        assert!(receiver.next().await.unwrap().is_some());
        assert!(matches!(receiver.next().await, Err(Breach::Flood)));
    }
}
