//! One worker after another: the first, the next on request, the next after a death.
//!
//! Nothing here ends the agent once it serves: without a worker connections are refused, and that is safe.

use std::sync::Arc;
use std::time::Duration;

use crate::channel::supervisor::Sender;
use crate::channel::{ToSupervisor, ToWorker};
use crate::credential::source::Keeper;

use super::crew::{Happened, Role};
use super::{Error, Supervisor, credential};

/// Workers that drain at once: each holds memory and a table on the disk.
const MANY: usize = 4;

impl Supervisor {
    /// Starts the first worker and waits until it serves.
    ///
    /// # Errors
    /// If it does not.
    pub(super) async fn first_worker(&mut self) -> Result<(), Error> {
        self.bring_up()?;
        loop {
            match self.crew.next().await {
                Happened::TookOver(_) => return Ok(()),
                Happened::Ended { why, .. } => return Err(Error::NotServing { why }),
                Happened::Said(ToSupervisor::Fault { message }) => {
                    return Err(Error::NotServing { why: message });
                }
                Happened::Said(_) | Happened::Settled | Happened::StartDue => {}
            }
        }
    }

    /// Takes in what happened to the workers.
    pub(super) fn heed(&mut self, happened: Happened) {
        match happened {
            Happened::TookOver(number) => {
                self.worker_error = None;
                tracing::info!(number, pid = self.crew.serving(), "a worker has taken over");
            }
            Happened::Said(ToSupervisor::Fault { message }) => {
                tracing::error!(message, "a worker reports a fault");
            }
            Happened::Said(ToSupervisor::PolicyApplied { generation }) => {
                tracing::info!(generation, "policy in force");
            }
            Happened::Said(_) | Happened::Settled => {}
            Happened::Ended {
                number,
                role,
                age,
                well,
                why,
            } => {
                self.ended(role, &why);
                match self.crew.start_later(age, role == Role::Serving) {
                    // Callers wait for it; what the last one owes can be recorded while it comes.
                    Some(Duration::ZERO) => self.start_another(),
                    Some(pause) => tracing::info!(?pause, "no worker serves; another is started"),
                    None => {}
                }
                self.records.recover(number, well);
            }
            Happened::StartDue => self.start_another(),
        }
    }

    /// On request: the new worker takes over the listeners before the one that serves lets go of them.
    pub(super) fn replace_worker(&mut self) {
        if self.crew.is_changing() {
            tracing::info!("a worker is being replaced already");
            return;
        }
        if self.crew.leaving() >= MANY {
            self.failed(format!("{MANY} workers before it still drain; try again later"));
            return;
        }
        self.start_another();
    }

    fn ended(&mut self, role: Role, why: &str) {
        match role {
            Role::Leaving => tracing::info!(why, "a worker that was replaced has ended"),
            Role::Serving => {
                tracing::error!(why, "the worker is gone; its open calls are recorded as aborted")
            }
            Role::Coming => self.failed(why.to_owned()),
        }
    }

    fn start_another(&mut self) {
        let Err(error) = self.bring_up() else { return };
        self.failed(error.to_string());
        if let Some(pause) = self.crew.start_later(Duration::ZERO, false) {
            tracing::info!(?pause, "tried again after a pause");
        }
    }

    fn failed(&mut self, why: String) {
        if self.crew.serving().is_some() {
            tracing::error!(
                why,
                "a new worker could not take over; the one that serves goes on"
            );
        } else {
            tracing::error!(
                why,
                "a new worker could not take over; connections are refused until one does"
            );
        }
        self.worker_error = Some(why);
    }

    /// Starts a worker and gives it everything; it takes over when it says that it is ready.
    fn bring_up(&mut self) -> Result<(), Error> {
        let answers = Arc::clone(&self.answers);
        let (number, worker) = self.crew.start(self.user, answers)?;
        let given = self.hand_over(number, &worker);
        if given.is_err() {
            self.crew.discard(number);
            self.records.recover(number, false);
        }
        given
    }

    fn hand_over(&mut self, number: u64, worker: &Sender) -> Result<(), Error> {
        let descriptors = self.records.descriptors(number, self.capture.worker_fds()?)?;
        worker.start(self.start_message()?, descriptors)?;
        let short = self.headroom.is_short();
        worker.send(ToWorker::Memory { short })?;
        worker.send(self.policy_message())?;
        for update in self.keepers.iter().filter_map(Keeper::current) {
            worker.send(credential(update))?;
        }
        for offer in self.capture.listeners(None)? {
            offer.to(worker)?;
        }
        Ok(())
    }
}
