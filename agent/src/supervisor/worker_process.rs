//! One worker process: started, seen to by a task of its own, ended.
//!
//! The task answers the worker's questions itself, so that no caller waits for what else the supervisor does, and
//! reports all else. It reports the end only when the process is gone: what it had under way can be recorded then.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::rights;

use super::sandbox::Unprivileged;
use crate::channel::ToSupervisor;
use crate::channel::frame::{FrameError, pair};
use crate::channel::supervisor::{Receiver, Sender, open};
use crate::config::LogLevel;
use crate::telemetry::{JOURNAL_VARIABLE, LEVEL_VARIABLE};

/// The environment that a worker keeps. Nothing else: the supervisor's may hold secrets.
const KEPT: [&str; 3] = [LEVEL_VARIABLE, JOURNAL_VARIABLE, "RUST_BACKTRACE"];
/// How long a process may take to end once its channel is closed.
const LAST_BREATH: Duration = Duration::from_secs(2);

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

/// What there is to hear of one worker.
#[derive(Debug)]
pub(super) enum News {
    /// It said something that is no question.
    Said(ToSupervisor),
    /// It is gone.
    Ended {
        /// By itself, and with success.
        well: bool,
        /// Why, for the log.
        why: String,
    },
}

/// Answers a worker's question beside everything else; gives back what is none.
pub(super) trait Answering: Send + Sync + 'static {
    /// Takes the question; the answer goes to `sender`.
    fn take(&self, said: ToSupervisor, sender: &Sender) -> Option<ToSupervisor>;
}

/// When to kill it, and what is said of it then.
type Sentence = Option<(Instant, &'static str)>;

/// One running worker. Dropping it kills the process, unless that is spared.
#[derive(Debug)]
pub(super) struct WorkerProcess {
    pid: Option<u32>,
    sender: Sender,
    started: Instant,
    sentence: watch::Sender<Sentence>,
    spared: Arc<AtomicBool>,
    _tending: AbortOnDropHandle<()>,
}

/// A thread keeps so many freed pieces of each size for itself. With seven, which is the C library's own number, most of
/// what calls that are under way at once give back and take takes the long way.
const MALLOC: &str = "glibc.malloc.tcache_count=64";

impl WorkerProcess {
    /// Starts `program worker` (the agent itself); it confines itself before it reads from the channel. News of
    /// it comes as `number`'s. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// If the system is out of descriptors or processes.
    pub(super) fn start(
        program: &Path,
        user: Unprivileged,
        log_level: LogLevel,
        number: u64,
        answers: Arc<dyn Answering>,
        news: mpsc::Sender<(u64, News)>,
    ) -> Result<Self, Error> {
        let (ours, theirs) = pair()?;
        let mut command = Command::new(program);
        command
            .arg("worker")
            .arg(format!("--uid={}", user.uid))
            .arg(format!("--gid={}", user.gid))
            .arg(format!("--log-level={}", log_level.as_str()))
            .env_clear()
            .envs(
                KEPT.iter()
                    .filter_map(|name| Some((name, std::env::var_os(name)?))),
            )
            .env("GLIBC_TUNABLES", MALLOC)
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null());
        let started = rights::hand_on(rights::TO_BECOME_ANOTHER, || command.spawn());
        let child = started.map_err(|source| Error::Spawn { source })?;
        // The command holds the worker's end, whose close is the sign of the worker's.
        drop(command);
        let (sender, receiver) = open(ours)?;
        let (sentence, sentenced) = watch::channel(None);
        let pid = child.id();
        let spared = Arc::new(AtomicBool::new(false));
        let tended = Tended {
            child: Bound {
                child,
                spared: Arc::clone(&spared),
            },
            receiver,
            sender: sender.clone(),
            answers,
            sentenced,
        };
        let tending = tokio::spawn(async move {
            let last = tended.tend(number, &news).await;
            // Nobody is left to hear it only if the supervisor is ending too.
            drop(news.send((number, last)).await);
        });
        Ok(Self {
            pid,
            sender,
            started: Instant::now(),
            sentence,
            spared,
            _tending: AbortOnDropHandle::new(tending),
        })
    }

    /// Its process id.
    pub(super) fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// The way to it.
    pub(super) fn sender(&self) -> &Sender {
        &self.sender
    }

    /// How long it has lived.
    pub(super) fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Kills it at this time, unless it has ended by then or is pardoned; `why` is what its end is put down to.
    pub(super) fn kill_at(&self, when: Instant, why: &'static str) {
        self.sentence.send_replace(Some((when, why)));
    }

    /// Lets the process live on when this is dropped.
    pub(super) fn spare(&self) {
        self.spared.store(true, Ordering::Relaxed);
        self.pardon();
    }

    /// Takes [`WorkerProcess::kill_at`] back.
    pub(super) fn pardon(&self) {
        self.sentence.send_replace(None);
    }
}

/// A process that does not outlive this, unless it is spared.
struct Bound {
    child: Child,
    spared: Arc<AtomicBool>,
}

impl Drop for Bound {
    fn drop(&mut self) {
        if !self.spared.load(Ordering::Relaxed) {
            // It may have ended.
            self.child.start_kill().ok();
        }
    }
}

struct Tended {
    child: Bound,
    receiver: Receiver,
    sender: Sender,
    answers: Arc<dyn Answering>,
    sentenced: watch::Receiver<Sentence>,
}

impl Tended {
    /// Until the process is gone.
    async fn tend(mut self, number: u64, news: &mpsc::Sender<(u64, News)>) -> News {
        let (why, patience) = loop {
            let said = tokio::select! {
                said = self.receiver.next() => said,
                why = execution(&mut self.sentenced) => break (why.to_owned(), Duration::ZERO),
            };
            match said {
                Ok(Some(said)) => {
                    if let Some(said) = self.answers.take(said, &self.sender)
                        && news.send((number, News::Said(said))).await.is_err()
                    {
                        break ("the supervisor ends".to_owned(), Duration::ZERO);
                    }
                }
                Ok(None) => break ("it ended".to_owned(), LAST_BREATH),
                Err(breach) => break (breach.to_string(), Duration::ZERO),
            }
        };
        match end(&mut self.child.child, patience).await {
            Ok(status) => News::Ended {
                well: status.success(),
                why: format!("{why} ({status})"),
            },
            Err(error) => News::Ended {
                well: false,
                why: format!("{why}, and can't be waited for: {error}"),
            },
        }
    }
}

/// Returns when the time has come.
async fn execution(sentenced: &mut watch::Receiver<Sentence>) -> &'static str {
    loop {
        let sentence = *sentenced.borrow_and_update();
        let Some((when, why)) = sentence else {
            if sentenced.changed().await.is_err() {
                return "the supervisor let go of it";
            }
            continue;
        };
        tokio::select! {
            () = tokio::time::sleep_until(when) => return why,
            changed = sentenced.changed() => if changed.is_err() {
                return "the supervisor let go of it";
            }
        }
    }
}

async fn end(child: &mut Child, patience: Duration) -> std::io::Result<ExitStatus> {
    if let Ok(ended) = tokio::time::timeout(patience, child.wait()).await {
        return ended;
    }
    child.start_kill()?;
    child.wait().await
}

/// How long to wait before the next worker is started after one died.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// A worker that lived this long is not part of a row of failures.
    const STEADY: Duration = Duration::from_secs(30);
    const FIRST: Duration = Duration::from_millis(50);
    /// After one that served: each pause keeps all workloads waiting, and something one of them sent may have
    /// killed it.
    const LONGEST_SERVED: Duration = Duration::from_millis(250);
    /// After one that never did: what is missing is not there a moment later.
    const LONGEST_NEVER: Duration = Duration::from_secs(2);

    /// The pause after the death of a worker of this age: none for the first, then doubling.
    pub(super) fn after(&mut self, age: Duration, served: bool) -> Duration {
        if age >= Self::STEADY {
            self.failures = 0;
        }
        let longest = if served {
            Self::LONGEST_SERVED
        } else {
            Self::LONGEST_NEVER
        };
        let pause = match self.failures {
            0 => Duration::ZERO,
            failures => Self::FIRST
                .saturating_mul(1 << (failures - 1).min(16))
                .min(longest),
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

    struct NoAnswers;

    impl Answering for NoAnswers {
        fn take(&self, said: ToSupervisor, _sender: &Sender) -> Option<ToSupervisor> {
            Some(said)
        }
    }

    fn start(program: &Path) -> (WorkerProcess, mpsc::Receiver<(u64, News)>) {
        let (news, heard) = mpsc::channel(8);
        let worker =
            WorkerProcess::start(program, NOBODY, LogLevel::Info, 7, Arc::new(NoAnswers), news).unwrap();
        (worker, heard)
    }

    #[test]
    fn workers_that_die_young_are_started_ever_more_slowly() {
        let mut backoff = Backoff::default();
        let young = Duration::from_secs(1);
        assert_eq!(backoff.after(young, true), Duration::ZERO);
        assert_eq!(backoff.after(young, true), Duration::from_millis(50));
        assert_eq!(backoff.after(young, true), Duration::from_millis(100));
        for _ in 0..100 {
            assert!(backoff.after(young, true) <= Duration::from_millis(250));
        }
        assert_eq!(backoff.after(young, false), Duration::from_secs(2));
        assert_eq!(backoff.after(Duration::from_secs(31), true), Duration::ZERO);
    }

    #[tokio::test]
    async fn the_end_of_a_worker_is_news() {
        let (_worker, mut heard) = start(Path::new("/bin/true"));
        let (number, News::Ended { well: true, why }) = heard.recv().await.unwrap() else {
            panic!("it said something");
        };
        assert_eq!(number, 7);
        assert!(why.contains("exit status: 0"), "{why}");
    }

    #[tokio::test]
    async fn a_worker_that_does_not_end_in_time_is_killed_and_a_pardoned_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("worker");
        std::fs::write(&program, "#!/bin/sh\nexec tail -f /dev/null\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, mode).unwrap();
        let (worker, mut heard) = start(&program);
        let pid = worker.pid().unwrap();
        worker.kill_at(Instant::now() + Duration::from_secs(3600), "later");
        worker.pardon();
        worker.kill_at(Instant::now(), "its time was over");
        let (_, News::Ended { well: false, why }) = heard.recv().await.unwrap() else {
            panic!("it said something");
        };
        assert!(
            why.contains("its time was over") && why.contains("SIGKILL"),
            "{why}"
        );
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
