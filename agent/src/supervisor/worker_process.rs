//! Starts, hands over to, drains and replaces the worker.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tokio::process::{Child, Command};

use super::sandbox::Unprivileged;
use crate::channel::frame::{FrameError, pair};
use crate::channel::supervisor::{Receiver, Sender, open};
use crate::channel::{ToWorker, supervisor::WorkerGone};

/// The environment that a worker keeps. Nothing else: the supervisor's may hold secrets.
const KEPT: [&str; 2] = ["CALLGATE_LOG", "RUST_BACKTRACE"];

/// A worker could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No socket pair.
    #[error(transparent)]
    Channel(#[from] FrameError),
    /// No process.
    #[error("can't start a worker: {source}")]
    Spawn {
        /// From the kernel.
        source: std::io::Error,
    },
}

/// One running worker. Dropping it kills the process.
#[derive(Debug)]
pub struct WorkerProcess {
    child: Child,
    sender: Sender,
    started: Instant,
}

impl WorkerProcess {
    /// Starts `program worker` (the agent itself); it confines itself before it reads from the channel.
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// If the system is out of descriptors or processes.
    pub fn start(program: &Path, user: Unprivileged) -> Result<(Self, Receiver), Error> {
        let (ours, theirs) = pair()?;
        let mut command = Command::new(program);
        command
            .arg("worker")
            .arg(format!("--uid={}", user.uid))
            .arg(format!("--gid={}", user.gid))
            .env_clear()
            .envs(
                KEPT.iter()
                    .filter_map(|name| Some((name, std::env::var_os(name)?))),
            )
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .kill_on_drop(true);
        let child = command.spawn().map_err(|source| Error::Spawn { source })?;
        let (sender, receiver) = open(ours)?;
        let worker = Self {
            child,
            sender,
            started: Instant::now(),
        };
        Ok((worker, receiver))
    }

    /// Its process id; `None` once it has been waited for.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// The way to it.
    #[must_use]
    pub fn sender(&self) -> &Sender {
        &self.sender
    }

    /// How long it has lived.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Returns when the process has ended. Dropping the future loses nothing.
    ///
    /// # Errors
    /// If it can't be waited for.
    pub async fn ended(&mut self) -> std::io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Tells it to end within `deadline`.
    ///
    /// # Errors
    /// If it takes no messages any more.
    pub async fn drain(&self, deadline: Duration) -> Result<(), WorkerGone> {
        let deadline_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
        self.sender.send(ToWorker::Drain { deadline_ms }).await
    }

    /// Drains it and waits; kills it if it is still there a second after the deadline.
    ///
    /// # Errors
    /// If it can't be killed.
    pub async fn retire(mut self, deadline: Duration) -> std::io::Result<()> {
        let grace = if self.drain(deadline).await.is_ok() {
            deadline + Duration::from_secs(1)
        } else {
            Duration::ZERO
        };
        match tokio::time::timeout(grace, self.ended()).await {
            Ok(ended) => ended.map(drop),
            Err(_elapsed) => self.child.kill().await,
        }
    }
}

/// How long to wait before the next worker is started after one died.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// A worker that lived this long is not part of a row of failures.
    const STEADY: Duration = Duration::from_secs(30);
    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(10);

    /// The pause after the death of a worker of this age: at once for the first, then doubling up to 10 s.
    pub fn after(&mut self, age: Duration) -> Duration {
        if age >= Self::STEADY {
            self.failures = 0;
        }
        let pause = match self.failures {
            0 => Duration::ZERO,
            failures => Self::FIRST
                .saturating_mul(1 << (failures - 1).min(16))
                .min(Self::LONGEST),
        };
        self.failures = self.failures.saturating_add(1);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY: Unprivileged = Unprivileged {
        uid: 65534,
        gid: 65534,
    };

    #[test]
    fn workers_that_die_young_are_started_ever_more_slowly() {
        let mut backoff = Backoff::default();
        let young = Duration::from_secs(1);
        assert_eq!(backoff.after(young), Duration::ZERO);
        assert_eq!(backoff.after(young), Duration::from_millis(100));
        assert_eq!(backoff.after(young), Duration::from_millis(200));
        for _ in 0..100 {
            assert!(backoff.after(young) <= Duration::from_secs(10));
        }
        assert_eq!(backoff.after(Duration::from_secs(31)), Duration::ZERO);
    }

    #[tokio::test]
    async fn the_end_of_a_worker_ends_its_channel() {
        let (mut worker, mut receiver) = WorkerProcess::start(Path::new("/bin/true"), NOBODY).unwrap();
        assert!(worker.ended().await.unwrap().success());
        assert!(receiver.next().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_worker_that_does_not_drain_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("worker");
        std::os::unix::fs::symlink("/bin/sh", dir.path().join("sh")).unwrap();
        std::fs::write(&program, "#!/bin/sh\nexec tail -f /dev/null\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, mode).unwrap();
        let (worker, _receiver) = WorkerProcess::start(&program, NOBODY).unwrap();
        let pid = worker.pid().unwrap();
        worker.retire(Duration::ZERO).await.unwrap();
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
