//! The workers: one that serves, perhaps one that is to take over, and those that drain.
//!
//! A worker that is to take over does so when it says that it is ready; until then, and if it never does, the one
//! that serves goes on. Without one that serves connections wait at the listeners, and are refused once the
//! liveness word is stale.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::sandbox::Unprivileged;
use super::worker_process::{Answering, Backoff, Error, News, WorkerProcess};
use crate::channel::supervisor::{Sender, WorkerGone};
use crate::channel::{Figures, ToSupervisor, ToWorker};
use crate::config::LogLevel;

/// How long a new worker may take until it serves.
const START_LIMIT: Duration = Duration::from_secs(20);
/// What a worker may take beyond the end of its drain: to write its last records.
const LAST_RECORDS: Duration = Duration::from_secs(6);
/// A worker that has answered nothing for so long is stuck for good. Connections are refused long before.
const SILENT: Duration = Duration::from_secs(60);
/// News that wait for the supervisor; the workers wait with the rest.
const NEWS: usize = 256;

/// How a worker is told to end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drain {
    /// How long its calls may go on.
    pub(super) deadline: Duration,
    /// How long a connection without a call is kept open, for its client's next request.
    pub(super) idle: Duration,
}

/// What a worker does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Role {
    /// Is to serve as soon as it is ready.
    Coming,
    /// Serves.
    Serving,
    /// Ends its calls.
    Leaving,
}

/// What happened.
#[derive(Debug)]
pub(super) enum Happened {
    /// The worker with this number now serves; the one before drains.
    TookOver(u64),
    /// A worker needs nobody any more for what it has accepted.
    Settled,
    /// A worker said something.
    Said(ToSupervisor),
    /// The worker with this number is gone.
    Ended {
        /// Its number.
        number: u64,
        /// What it did.
        role: Role,
        /// How long it lived.
        age: Duration,
        /// Whether it ended by itself, and with success.
        well: bool,
        /// Why, for the log.
        why: String,
    },
    /// It is time to start a worker in place of one that died.
    StartDue,
}

/// All workers.
#[derive(Debug)]
pub(super) struct Crew {
    members: Vec<Member>,
    news: mpsc::Receiver<(u64, News)>,
    tell: mpsc::Sender<(u64, News)>,
    last: u64,
    backoff: Backoff,
    start_at: Option<Instant>,
    drain: Drain,
    log_level: LogLevel,
    ending: bool,
    figures: Figures,
}

#[derive(Debug)]
struct Member {
    number: u64,
    role: Role,
    process: WorkerProcess,
    heard: Instant,
    settled: bool,
}

impl Crew {
    /// Nobody yet; `drain` is what a worker is told when another takes over, `log_level` what all log.
    pub(super) fn new(drain: Drain, log_level: LogLevel) -> Self {
        let (tell, news) = mpsc::channel(NEWS);
        Self {
            members: Vec::new(),
            news,
            tell,
            last: 0,
            backoff: Backoff::default(),
            start_at: None,
            drain,
            log_level,
            ending: false,
            figures: Figures::default(),
        }
    }

    /// Starts a worker that is to take over; it has to be given everything next. Also gives its number.
    ///
    /// # Errors
    /// If it can't be started.
    pub(super) fn start(
        &mut self,
        user: Unprivileged,
        answers: Arc<dyn Answering>,
    ) -> Result<(u64, Sender), Error> {
        self.last += 1;
        let number = self.last;
        let process = WorkerProcess::start(
            Path::new("/proc/self/exe"),
            user,
            self.log_level,
            number,
            answers,
            self.tell.clone(),
        )?;
        process.kill_at(Instant::now() + START_LIMIT, "it was not ready in time");
        let sender = process.sender().clone();
        self.start_at = None;
        self.members.push(Member {
            number,
            role: Role::Coming,
            process,
            heard: Instant::now(),
            settled: false,
        });
        Ok((number, sender))
    }

    /// Kills a worker that could not be given what it needs; there is no news of its end.
    pub(super) fn discard(&mut self, number: u64) {
        self.members.retain(|one| one.number != number);
    }

    /// Waits for what happens next. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Happened {
        loop {
            let due = self.start_at;
            let (number, news) = tokio::select! {
                Some(news) = self.news.recv() => news,
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    self.start_at = None;
                    return Happened::StartDue;
                }
            };
            if let Some(happened) = self.take(number, news) {
                return happened;
            }
        }
    }

    fn take(&mut self, number: u64, news: News) -> Option<Happened> {
        let place = self.members.iter().position(|one| one.number == number)?;
        let said = match news {
            News::Said(said) => said,
            News::Ended { well, why } => {
                let member = self.members.swap_remove(place);
                if member.role == Role::Serving {
                    self.figures = Figures::default();
                }
                return Some(Happened::Ended {
                    number,
                    role: member.role,
                    age: member.process.age(),
                    well,
                    why,
                });
            }
        };
        let member = self.members.get_mut(place)?;
        member.heard = Instant::now();
        match (said, member.role) {
            (ToSupervisor::Ready, Role::Coming) => {
                self.promote(number);
                Some(Happened::TookOver(number))
            }
            (ToSupervisor::Status { figures, .. }, role) => {
                if role == Role::Serving {
                    self.figures = figures;
                }
                None
            }
            (ToSupervisor::Settled, _) => {
                member.settled = true;
                Some(Happened::Settled)
            }
            (ToSupervisor::Fault { message }, Role::Coming) => {
                member.process.kill_at(Instant::now(), "it reported a fault");
                Some(Happened::Said(ToSupervisor::Fault { message }))
            }
            (said, _) => Some(Happened::Said(said)),
        }
    }

    /// What the one before said of itself counts no more; the new one is asked at once.
    fn promote(&mut self, number: u64) {
        self.figures = Figures::default();
        for member in &mut self.members {
            if member.number == number {
                member.role = Role::Serving;
                member.process.pardon();
                // One that is gone has no figures.
                member.process.sender().send(ToWorker::Status { request: 0 }).ok();
            } else if member.role == Role::Serving {
                member.retire(self.drain);
            }
        }
    }

    /// Starts another worker after a pause that grows with each that does not live. `None` if one serves or is
    /// to, or none shall; else the pause.
    pub(super) fn start_later(&mut self, age: Duration, served: bool) -> Option<Duration> {
        if self.ending || self.members.iter().any(|one| one.role != Role::Leaving) {
            return None;
        }
        let pause = self.backoff.after(age, served);
        self.start_at = Some(Instant::now() + pause);
        Some(pause)
    }

    /// Whether a worker is to take over.
    pub(super) fn is_changing(&self) -> bool {
        self.members.iter().any(|one| one.role == Role::Coming)
    }

    /// The process that serves.
    pub(super) fn serving(&self) -> Option<u32> {
        let found = self.members.iter().find(|one| one.role == Role::Serving);
        found.and_then(|one| one.process.pid())
    }

    /// How many drain.
    pub(super) fn leaving(&self) -> usize {
        self.members
            .iter()
            .filter(|one| one.role == Role::Leaving)
            .count()
    }

    /// What the worker that serves counted last; nothing, and no fault, before it has said so once.
    pub(super) fn figures(&self) -> &Figures {
        &self.figures
    }

    /// Tells every worker, those that drain too: their calls go on under the policy in force.
    pub(super) fn tell(&self, mut message: impl FnMut(&Sender, Role) -> Result<(), super::Error>) {
        for member in &self.members {
            if let Err(error) = message(member.process.sender(), member.role) {
                tracing::warn!(%error, worker = member.process.pid(), "a worker could not be told");
            }
        }
    }

    /// Asks all for their figures, and ends who has been silent for too long.
    pub(super) fn look_after(&self) {
        for member in &self.members {
            if member
                .process
                .sender()
                .send(ToWorker::Status { request: 0 })
                .is_err()
            {
                member.process.kill_at(Instant::now(), "it takes no messages");
            } else if member.role == Role::Serving && member.heard.elapsed() > SILENT {
                let why = "it has answered nothing for a minute";
                member.process.kill_at(Instant::now(), why);
            }
        }
    }

    /// Tells all to end; no other is started after that.
    pub(super) fn retire(&mut self, drain: Drain) {
        self.ending = true;
        self.start_at = None;
        for member in &mut self.members {
            member.retire(drain);
        }
    }

    /// Tells all to end without this process, and what shows them that others serve; no other is started after that.
    pub(super) fn leave(&mut self, drain: Drain, baton: &UnixStream) {
        self.ending = true;
        self.start_at = None;
        self.members.retain(|one| one.role != Role::Coming);
        for member in &mut self.members {
            member.role = Role::Leaving;
            let told = baton.try_clone().map_err(drop).and_then(|baton| {
                let sender = member.process.sender();
                sender
                    .leave(drain.deadline, drain.idle, baton)
                    .map_err(|WorkerGone| ())
            });
            // One that is gone has nothing to settle, and one that can't be told ends with the channel.
            member.settled = told.is_err();
        }
    }

    /// Whether none of those that were told to leave waits for an answer.
    pub(super) fn is_settled(&self) -> bool {
        self.members.iter().all(|one| one.settled)
    }

    /// Lets all live on when this process ends.
    pub(super) fn spare(&self) {
        for member in &self.members {
            member.process.spare();
        }
    }

    /// Whether nobody is left.
    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }
}

impl Member {
    fn retire(&mut self, drain: Drain) {
        self.role = Role::Leaving;
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let message = ToWorker::Drain {
            deadline_ms: millis(drain.deadline),
            idle_ms: millis(drain.idle),
        };
        let patience = match self.process.sender().send(message) {
            Ok(()) => drain.deadline + LAST_RECORDS,
            Err(WorkerGone) => Duration::ZERO,
        };
        self.process
            .kill_at(Instant::now() + patience, "it did not drain in time");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_has_reported_nothing_yet_is_not_said_to_fail() {
        let drain = Drain {
            deadline: Duration::ZERO,
            idle: Duration::ZERO,
        };
        assert_eq!(Crew::new(drain, LogLevel::Info).figures().audit_error, None);
    }

    struct NoAnswers;

    impl Answering for NoAnswers {
        fn take(&self, said: ToSupervisor, _sender: &Sender) -> Option<ToSupervisor> {
            Some(said)
        }
    }

    fn crew(roles: &[Role]) -> Crew {
        let drain = Drain {
            deadline: Duration::ZERO,
            idle: Duration::ZERO,
        };
        let mut crew = Crew::new(drain, LogLevel::Info);
        let user = Unprivileged {
            uid: 65534,
            gid: 65534,
        };
        for (number, role) in roles.iter().enumerate() {
            let (number, tell) = (number as u64, crew.tell.clone());
            let program = Path::new("/bin/true");
            let process =
                WorkerProcess::start(program, user, crew.log_level, number, Arc::new(NoAnswers), tell)
                    .unwrap();
            crew.members.push(Member {
                number,
                role: *role,
                process,
                heard: Instant::now(),
                settled: false,
            });
        }
        crew
    }

    fn full_disk() -> News {
        let figures = Figures {
            audit_error: Some("no space".into()),
            ..Figures::default()
        };
        News::Said(ToSupervisor::Status { request: 0, figures })
    }

    #[tokio::test]
    async fn a_fault_of_a_worker_that_serves_no_more_is_not_the_agents() {
        let mut crew = crew(&[Role::Serving, Role::Coming]);
        assert!(crew.take(0, full_disk()).is_none());
        assert_eq!(crew.figures().audit_error.as_deref(), Some("no space"));
        crew.take(1, News::Said(ToSupervisor::Ready)).unwrap();
        assert_eq!(crew.figures().audit_error, None);
        // It drains, and says so again.
        assert!(crew.take(0, full_disk()).is_none());
        assert_eq!(crew.figures().audit_error, None);
        assert!(crew.take(1, full_disk()).is_none());
        let ended = News::Ended {
            well: false,
            why: String::new(),
        };
        crew.take(1, ended).unwrap();
        assert_eq!(crew.figures().audit_error, None, "it is gone");
    }
}
