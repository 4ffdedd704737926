//! Answers to the worker's questions: who calls, what it runs now, an intermediate for a host.
//!
//! What comes up is checked again here: the worker reads what the network sends.

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;

use crate::channel::supervisor::Sender;
use crate::channel::{Refusal, ToSupervisor, ToWorker};
use crate::ebpf::Origin;
use crate::identity::executable::DEFAULT_MAX_DIGEST_BYTES;
use crate::identity::resolve::{Claim, Resolver, Want};
use crate::policy::Policy;
use crate::tls::ca::Root;

use super::capture::Capture;
use super::worker_process::Answering;

/// Questions worked on at once; the others wait their turn.
const AT_ONCE: usize = 16;

/// What answers need.
pub(super) struct Answers {
    resolver: Arc<Resolver>,
    root: Arc<Root>,
    policy: Arc<ArcSwap<Policy>>,
    turns: Arc<Semaphore>,
}

impl Answers {
    pub(super) fn new(capture: &Capture, root: Arc<Root>, policy: &Arc<Policy>) -> Self {
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
            policy: Arc::new(ArcSwap::new(Arc::clone(policy))),
            turns: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    pub(super) fn set_workloads(&self, capture: &Capture) {
        self.resolver.set_workloads(
            capture
                .workloads()
                .map(|(name, _, number)| (number, name.clone())),
        );
    }

    /// What finds out who a caller is.
    pub(super) fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    pub(super) fn set_policy(&self, policy: &Arc<Policy>) {
        self.policy.store(Arc::clone(policy));
    }
}

impl Answering for Answers {
    fn take(&self, said: ToSupervisor, sender: &Sender) -> Option<ToSupervisor> {
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
        let (turns, sender) = (Arc::clone(&self.turns), sender.clone());
        tokio::spawn(async move {
            let Ok(_turn) = turns.acquire().await else { return };
            let Ok(answer) = tokio::task::spawn_blocking(work).await else {
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
