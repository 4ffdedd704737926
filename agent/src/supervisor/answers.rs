//! Answers to the worker's questions: who calls, what it runs now, an intermediate for a host.
//!
//! What comes up is checked again here: the worker reads what the network sends.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::addr::HostName;
use crate::budget::Lines;
use crate::channel::supervisor::Sender;
use crate::channel::{Refusal, ToSupervisor, ToWorker};
use crate::ebpf::Origin;
use crate::identity::executable::DEFAULT_MAX_DIGEST_BYTES;
use crate::identity::resolve::{Claim, ResolveError, Resolver, Want};
use crate::tls::ca::Root;

use super::canary::Flights;
use super::capture::{Capture, Doors};
use super::turns::{Late, Turns};
use super::worker_process::Answering;

/// How long an answer may take; the worker gives up after ten seconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// Signing has turns of its own, under a number that no workload has.
const SIGNING: u32 = u32::MAX;

/// What answers need.
pub(super) struct Answers {
    resolver: Arc<Resolver>,
    root: Arc<Root>,
    doors: Doors,
    canaries: Flights,
    turns: Arc<Turns>,
    late: Arc<Lines<u32>>,
}

impl Answers {
    pub(super) fn new(capture: &Capture, root: Arc<Root>, canaries: Flights) -> Self {
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
            doors: capture.doors(),
            canaries,
            turns: Arc::new(Turns::new(PATIENCE)),
            late: Arc::default(),
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
    ///
    /// # Errors
    /// If it takes too long.
    pub(super) async fn about<T: Send + 'static>(
        &self,
        workload: u32,
        look: impl FnOnce(&Resolver) -> T + Send + 'static,
    ) -> Result<T, Late> {
        let resolver = Arc::clone(&self.resolver);
        self.turns.run(workload, move || look(&resolver)).await
    }
}

impl Answering for Answers {
    fn take(&self, said: ToSupervisor, sender: &Sender) -> Option<ToSupervisor> {
        let question = match said {
            ToSupervisor::Identify {
                request,
                origin,
                digest,
            } => self.identify(request, &origin, digest),
            ToSupervisor::Executable {
                request,
                origin,
                digest,
            } => self.executable(request, &origin, digest),
            ToSupervisor::Socket { request, origin, v6 } => self.socket(request, &origin, v6),
            ToSupervisor::Intermediate { host } => Ok(self.intermediate(host)),
            ToSupervisor::Canary { request, origin } => {
                let origin = Origin::from_bytes(&origin);
                let sent = origin.is_some_and(|origin| self.canaries.heard(&origin));
                Err(ToWorker::Canary { request, sent })
            }
            said @ (ToSupervisor::Ready
            | ToSupervisor::PolicyApplied { .. }
            | ToSupervisor::Status { .. }
            | ToSupervisor::Settled
            | ToSupervisor::Drained
            | ToSupervisor::Fault { .. }) => return Some(said),
        };
        let (turns, late, sender) = (Arc::clone(&self.turns), Arc::clone(&self.late), sender.clone());
        tokio::spawn(async move {
            let Answer(message, descriptor) = match question {
                Ok(question) => question.settle(&turns, &late).await,
                Err(refused) => refused.into(),
            };
            if sender.answer(message, descriptor).is_err() {
                tracing::debug!("the worker that asked is gone");
            }
        });
        None
    }
}

/// What is said, and the descriptor that belongs to it.
struct Answer(ToWorker, Option<OwnedFd>);

impl From<ToWorker> for Answer {
    fn from(message: ToWorker) -> Self {
        Self(message, None)
    }
}

type Work = Box<dyn FnOnce() -> Answer + Send>;

/// What to do, in whose turn, and what is said when that takes too long.
struct Question {
    workload: u32,
    work: Work,
    late: Work,
}

impl Question {
    async fn settle(self, turns: &Turns, late: &Lines<u32>) -> Answer {
        let workload = self.workload;
        turns.run(workload, self.work).await.unwrap_or_else(|Late| {
            // An executable on a file system that hangs makes each question about it late.
            if let Some(left_out) = late.next(&workload) {
                tracing::warn!(
                    workload,
                    left_out,
                    "a question of the worker was not answered in time"
                );
            }
            (self.late)()
        })
    }
}

impl Answers {
    fn identify(&self, request: u64, origin: &[u8], digest: bool) -> Result<Question, ToWorker> {
        let answer = move |result| ToWorker::Identity { request, result };
        let claim = self.claim(origin).map_err(|refusal| answer(Err(refusal)))?;
        let (resolver, bare) = (Arc::clone(&self.resolver), Arc::clone(&self.resolver));
        let known = claim.clone();
        let boxed = |found: Result<_, ResolveError>| found.map(Box::new).map_err(Refusal::new);
        Ok(Question {
            workload: claim.workload,
            work: Box::new(move || {
                answer(boxed(resolver.resolve(&claim, Want { exe: true, digest }))).into()
            }),
            late: Box::new(move || answer(boxed(bare.of_kernel(&known))).into()),
        })
    }

    fn executable(&self, request: u64, origin: &[u8], digest: bool) -> Result<Question, ToWorker> {
        let answer = move |result| ToWorker::Executable { request, result };
        let claim = self.claim(origin).map_err(|refusal| answer(Err(refusal)))?;
        let resolver = Arc::clone(&self.resolver);
        Ok(Question {
            workload: claim.workload,
            work: Box::new(move || {
                let found = resolver.recheck(&claim, Want { exe: true, digest });
                answer(found.map_err(Refusal::new)).into()
            }),
            late: Box::new(move || {
                answer(Err(Refusal::new("the executable could not be examined in time"))).into()
            }),
        })
    }

    /// Only in namespaces where the workload is served: the worker can't reach into others.
    fn socket(&self, request: u64, origin: &[u8], v6: bool) -> Result<Question, ToWorker> {
        let answer = move |result| ToWorker::Socket { request, result };
        let claim = self.claim(origin).map_err(|refusal| answer(Err(refusal)))?;
        let (doors, workload) = (self.doors.clone(), claim.workload);
        Ok(Question {
            workload,
            work: Box::new(move || match doors.socket(workload, claim.netns_cookie, v6) {
                Ok(socket) => Answer(answer(Ok(())), Some(socket)),
                Err(error) => answer(Err(Refusal::new(error))).into(),
            }),
            late: Box::new(move || answer(Err(Refusal::new("no socket was made in time"))).into()),
        })
    }

    fn intermediate(&self, host: HostName) -> Question {
        let (root, late) = (Arc::clone(&self.root), host.clone());
        Question {
            workload: SIGNING,
            work: Box::new(move || {
                let result = root
                    .issue_intermediate(&host, SystemTime::now())
                    .map_err(Refusal::new);
                ToWorker::Intermediate { host, result }.into()
            }),
            late: Box::new(move || {
                let result = Err(Refusal::new("signing took too long"));
                ToWorker::Intermediate { host: late, result }.into()
            }),
        }
    }

    /// The kernel's record, of a workload that there is: the worker can't name others to take their turns.
    fn claim(&self, origin: &[u8]) -> Result<Claim, Refusal> {
        let origin =
            Origin::from_bytes(origin).ok_or_else(|| Refusal::new("the kernel's record is cut short"))?;
        let claim = Claim::from(&origin);
        self.resolver.of_kernel(&claim).map_err(Refusal::new)?;
        Ok(claim)
    }
}
