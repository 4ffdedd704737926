//! Answers to the worker's questions: who calls, what it runs now, an intermediate for a host.
//!
//! What comes up is checked again here: the worker reads what the network sends.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio::sync::Semaphore;

use crate::channel::supervisor::Sender;
use crate::channel::{Refusal, ToSupervisor, ToWorker};
use crate::ebpf::Origin;
use crate::identity::executable::DEFAULT_MAX_DIGEST_BYTES;
use crate::identity::resolve::{Claim, Resolver, Want};
use crate::tls::ca::Root;

use super::capture::Capture;
use super::worker_process::Answering;

/// Questions worked on at once; the others wait their turn.
const AT_ONCE: usize = 32;
/// Those on behalf of one workload: another's question waits for none of its flood.
const OF_ONE: usize = 4;
/// Signatures are asked for on behalf of all workloads; no workload has this number.
const SIGNATURES: u32 = 0;
/// Workloads whose turns are kept at once; beyond it those without a question are forgotten.
const MANY: usize = 4096;

/// What answers need.
pub(super) struct Answers {
    resolver: Arc<Resolver>,
    root: Arc<Root>,
    turns: Turns,
}

/// Whose turn it is.
#[derive(Clone)]
struct Turns {
    all: Arc<Semaphore>,
    each: Arc<Mutex<HashMap<u32, Arc<Semaphore>>>>,
}

impl Turns {
    fn new() -> Self {
        Self {
            all: Arc::new(Semaphore::new(AT_ONCE)),
            each: Arc::default(),
        }
    }

    /// Does work that blocks when it is this workload's turn. The turn lasts as long as the work does, whoever has
    /// stopped waiting for it. `None` if it panicked.
    async fn take<T: Send + 'static>(
        &self,
        workload: u32,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let own = self.of(workload).acquire_owned().await.ok()?;
        let turn = Arc::clone(&self.all).acquire_owned().await.ok()?;
        let done = tokio::task::spawn_blocking(move || {
            let result = work();
            drop((own, turn));
            result
        });
        done.await.ok()
    }

    fn of(&self, workload: u32) -> Arc<Semaphore> {
        let mut each = self.each.lock().unwrap_or_else(PoisonError::into_inner);
        if each.len() >= MANY {
            each.retain(|_, turns| Arc::strong_count(turns) > 1);
        }
        let turns = each
            .entry(workload)
            .or_insert_with(|| Arc::new(Semaphore::new(OF_ONE)));
        Arc::clone(turns)
    }
}

impl Answers {
    pub(super) fn new(capture: &Capture, root: Arc<Root>) -> Self {
        let resolver = Resolver::new(
            capture.mount(),
            capture.parent(),
            capture
                .workloads()
                .map(|(name, _, number)| (number, name.clone())),
            DEFAULT_MAX_DIGEST_BYTES,
        );
        Self {
            resolver: Arc::new(resolver),
            root,
            turns: Turns::new(),
        }
    }

    pub(super) fn set_workloads(&self, capture: &Capture) {
        self.resolver.set_workloads(
            capture
                .workloads()
                .map(|(name, _, number)| (number, name.clone())),
        );
    }

    /// What `look` finds out for a workload, in the workload's turn: looking may block, and only its own workload waits.
    /// `None` if it could not look.
    pub(super) async fn about<T: Send + 'static>(
        self: Arc<Self>,
        workload: u32,
        look: impl FnOnce(&Resolver) -> T + Send + 'static,
    ) -> Option<T> {
        let resolver = Arc::clone(&self.resolver);
        self.turns.take(workload, move || look(&resolver)).await
    }
}

impl Answering for Answers {
    fn take(&self, said: ToSupervisor, sender: &Sender) -> Option<ToSupervisor> {
        let workload = subject(&said);
        let work: Box<dyn FnOnce() -> ToWorker + Send> = match said {
            ToSupervisor::Identify {
                request,
                origin,
                digest,
            } => {
                let resolver = Arc::clone(&self.resolver);
                Box::new(move || ToWorker::Identity {
                    request,
                    result: claim(&origin).and_then(|claim| {
                        resolver
                            .resolve(&claim, Want { exe: true, digest })
                            .map(Box::new)
                            .map_err(Refusal::new)
                    }),
                })
            }
            ToSupervisor::Executable {
                request,
                origin,
                digest,
            } => {
                let resolver = Arc::clone(&self.resolver);
                Box::new(move || ToWorker::Executable {
                    request,
                    result: claim(&origin).and_then(|claim| {
                        resolver
                            .recheck(&claim, Want { exe: true, digest })
                            .map_err(Refusal::new)
                    }),
                })
            }
            ToSupervisor::Intermediate { host } => {
                let root = Arc::clone(&self.root);
                Box::new(move || {
                    let result = root
                        .issue_intermediate(&host, SystemTime::now())
                        .map_err(Refusal::new);
                    ToWorker::Intermediate { host, result }
                })
            }
            said @ (ToSupervisor::Ready
            | ToSupervisor::PolicyApplied { .. }
            | ToSupervisor::Status { .. }
            | ToSupervisor::Drained
            | ToSupervisor::Fault { .. }) => return Some(said),
        };
        let (turns, sender) = (self.turns.clone(), sender.clone());
        tokio::spawn(async move {
            let Some(answer) = turns.take(workload, work).await else {
                tracing::error!("a question of the worker could not be worked on");
                return;
            };
            if sender.send(answer).is_err() {
                tracing::debug!("the worker that asked is gone");
            }
        });
        None
    }
}

fn claim(origin: &[u8]) -> Result<Claim, Refusal> {
    let origin =
        Origin::from_bytes(origin).ok_or_else(|| Refusal::new("the kernel's record is cut short"))?;
    Ok(Claim::from(&origin))
}

/// Whose question it is.
fn subject(said: &ToSupervisor) -> u32 {
    match said {
        ToSupervisor::Identify { origin, .. } | ToSupervisor::Executable { origin, .. } => {
            Origin::from_bytes(origin).map_or(SIGNATURES, |origin| origin.workload())
        }
        ToSupervisor::Ready
        | ToSupervisor::PolicyApplied { .. }
        | ToSupervisor::Intermediate { .. }
        | ToSupervisor::Status { .. }
        | ToSupervisor::Drained
        | ToSupervisor::Fault { .. } => SIGNATURES,
    }
}
