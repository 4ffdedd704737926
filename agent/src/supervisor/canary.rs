//! Canaries: one connect from inside each workload every minute, which has to arrive at the workload's listener.
//!
//! The perimeter is guarded by looking at what should be there; this looks at what it does. The process that connects is
//! the agent's own, put into the workload's cgroup with nothing but the cgroup's file in hand, and dials a loopback address
//! at which the supervisor itself listens meanwhile: a canary that nobody turns round ends there, and reaches no network.

mod trap;

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::path::Path;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::channel::CANARY;
use crate::ebpf::Origin;
use crate::identity::WorkloadName;

use super::Supervisor;
use super::sandbox::Unprivileged;
use trap::Trap;

/// Canaries at once.
const AT_ONCE: usize = 16;
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(8);
/// What the worker has to say may come a little later than the end of the process.
const GRACE: Duration = Duration::from_secs(1);
/// After a failure the next one comes sooner.
const AGAIN: Duration = Duration::from_secs(5);

/// What a canary says of its connect, as its exit code.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Told {
    /// Somebody took the connection.
    Connected,
    /// The kernel side refused it: where it was dialled the supervisor listens, or something else does.
    Refused,
    /// Something else.
    Failed,
    /// The process could not enter the workload's cgroup.
    NotInside,
}

impl Told {
    const ALL: [(Self, u8); 4] = [
        (Self::Connected, 0),
        (Self::Refused, 10),
        (Self::Failed, 12),
        (Self::NotInside, 13),
    ];

    fn by(status: ExitStatus) -> Option<Self> {
        let code = status.code()?;
        let found = Self::ALL.iter().find(|(_, number)| i32::from(*number) == code);
        found.map(|(told, _)| *told)
    }
}

impl From<Told> for ExitCode {
    fn from(told: Told) -> Self {
        let found = Told::ALL.iter().find(|(one, _)| *one == told);
        found.map_or(Self::FAILURE, |(_, number)| Self::from(*number))
    }
}

/// A workload to send a canary into.
#[derive(Debug)]
pub(super) struct Cage {
    /// Its name.
    pub(super) workload: WorkloadName,
    /// Its number.
    pub(super) number: u32,
}

/// What a round brought.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Sung {
    /// The workload's connections are not captured.
    Failed {
        /// Which.
        workload: WorkloadName,
        /// What came of its canary.
        why: &'static str,
        /// Whether that is news.
        fresh: bool,
    },
    /// They are again.
    Well(WorkloadName),
}

#[derive(Debug)]
struct Flying {
    cage: Cage,
    child: Child,
    pid: u32,
    until: Instant,
    ended: Option<(Option<Told>, Instant)>,
    heard: bool,
}

/// All canaries.
#[derive(Debug)]
pub(super) struct Canaries {
    interval: Duration,
    user: Unprivileged,
    due: Instant,
    waiting: VecDeque<Cage>,
    flying: Vec<Flying>,
    trap: Option<Trap>,
    findings: BTreeMap<WorkloadName, &'static str>,
}

impl Canaries {
    /// The first ones fly after this interval.
    pub(super) fn new(interval: Duration, user: Unprivileged) -> Self {
        Self {
            interval,
            user,
            due: Instant::now() + interval,
            waiting: VecDeque::new(),
            flying: Vec::new(),
            trap: None,
            findings: BTreeMap::new(),
        }
    }

    /// Whether it is time for a round.
    pub(super) fn is_due(&self) -> bool {
        self.waiting.is_empty() && self.flying.is_empty() && Instant::now() >= self.due
    }

    /// Sends canaries into these, and into no others.
    pub(super) fn begin(&mut self, cages: Vec<Cage>) {
        self.due = Instant::now() + self.interval;
        self.findings
            .retain(|workload, _| cages.iter().any(|cage| cage.workload == *workload));
        self.trap = Trap::set();
        self.waiting = cages.into();
    }

    /// The worker took this process's connection.
    pub(super) fn heard(&mut self, origin: &Origin) {
        for one in &mut self.flying {
            // In another pid namespace than the first the kernel side may not know process ids.
            let is_its = origin.tgid().is_none_or(|pid| pid == one.pid);
            if is_its && one.cage.number == origin.workload() {
                one.heard = true;
            }
        }
    }

    /// What is not captured, and why.
    pub(super) fn findings(&self) -> impl Iterator<Item = (&WorkloadName, &str)> {
        self.findings.iter().map(|(workload, why)| (workload, *why))
    }

    /// Starts what can be started, `enter` giving the file by which a process enters a workload; gives what changed.
    pub(super) fn look(&mut self, mut enter: impl FnMut(&WorkloadName) -> Result<File, String>) -> Vec<Sung> {
        let mut sung = Vec::new();
        if let Some(trap) = &mut self.trap {
            trap.look();
        }
        for mut one in std::mem::take(&mut self.flying) {
            match one.judge(self.trap.as_ref()) {
                None => self.flying.push(one),
                Some(judged) => sung.extend(self.note(one.cage.workload, judged)),
            }
        }
        while self.flying.len() < AT_ONCE {
            let Some(cage) = self.waiting.pop_front() else {
                break;
            };
            match enter(&cage.workload).and_then(|procs| self.release(procs)) {
                Ok((child, pid)) => self.flying.push(Flying {
                    cage,
                    child,
                    pid,
                    until: Instant::now() + PATIENCE,
                    ended: None,
                    heard: false,
                }),
                Err(why) => {
                    tracing::warn!(why, workload = %cage.workload, "no canary could be sent; the next round tries again")
                }
            }
        }
        if self.flying.is_empty() && self.waiting.is_empty() {
            self.trap = None;
        }
        sung
    }

    fn release(&self, procs: File) -> Result<(Child, u32), String> {
        let child = Command::new(Path::new("/proc/self/exe"))
            .arg("canary")
            .arg(format!("--uid={}", self.user.uid))
            .arg(format!("--gid={}", self.user.gid))
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(procs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| error.to_string())?;
        let pid = child.id().ok_or("it ended at once")?;
        Ok((child, pid))
    }

    fn note(&mut self, workload: WorkloadName, judged: Judged) -> Option<Sung> {
        match judged {
            Judged::Well => self.findings.remove(&workload).map(|_why| Sung::Well(workload)),
            // It has not connected, so nothing is known.
            Judged::Nothing => {
                tracing::warn!(%workload, "a canary could not enter the workload; the next round tries again");
                None
            }
            Judged::Failed(why) => {
                self.due = self.due.min(Instant::now() + AGAIN);
                let before = self.findings.insert(workload.clone(), why);
                Some(Sung::Failed {
                    workload,
                    why,
                    fresh: before != Some(why),
                })
            }
        }
    }
}

impl Supervisor {
    /// Sends canaries when it is time, says what came of them, and puts back what may be missing.
    pub(super) fn look_after_canaries(&mut self) {
        // Without one that serves nothing can arrive, and status says so.
        let serves = self.crew.serving().is_some() && !self.headroom.is_short();
        if serves && self.canaries.is_due() {
            let cages = self.capture.workloads().filter(|(name, ..)| self.may_fly(name));
            let cages = cages.map(|(name, _, number)| Cage {
                workload: name.clone(),
                number,
            });
            let cages = cages.collect();
            self.canaries.begin(cages);
        }
        let capture = &self.capture;
        for sung in self.canaries.look(|workload| capture.cage(workload)) {
            match sung {
                Sung::Failed { workload, why, fresh } => {
                    if fresh {
                        tracing::error!(%workload, why, "the workload's canary failed");
                        self.records.canary_failed(&workload, why);
                    }
                    if let Err(error) = self.capture.mend(&self.policy) {
                        tracing::error!(%error, "what the kernel side knows of the workloads can't be written anew");
                    }
                }
                Sung::Well(workload) => tracing::info!(%workload, "the workload's canary arrives again"),
            }
        }
    }

    /// What passes by a direct rule is not turned round.
    fn may_fly(&self, workload: &WorkloadName) -> bool {
        let direct = self.policy.workload(workload).map_or(&[][..], |one| one.direct());
        !direct
            .iter()
            .any(|rule| rule.port == CANARY.port() && rule.cidr.contains(&CANARY.ip()))
    }
}

#[derive(Debug, Eq, PartialEq)]
enum Judged {
    Well,
    Nothing,
    Failed(&'static str),
}

impl Flying {
    /// What came of it; `None` while that can't be said.
    fn judge(&mut self, trap: Option<&Trap>) -> Option<Judged> {
        let now = Instant::now();
        if self.heard {
            return Some(Judged::Well);
        }
        if self.ended.is_none() {
            match self.child.try_wait() {
                Ok(Some(status)) => self.ended = Some((Told::by(status), now + GRACE)),
                Ok(None) if now < self.until => return None,
                Ok(None) | Err(_) => return Some(Judged::Failed("the canary did not come to an end")),
            }
        }
        let (told, grace) = self.ended?;
        let caught = trap.map(Trap::has_caught);
        match told {
            Some(Told::Connected) if now < grace => None,
            told => Some(judge(told, caught)),
        }
    }
}

/// What it means that a canary told this and no worker has heard of it. `caught` is whether the trap has, if there is one.
fn judge(told: Option<Told>, caught: Option<bool>) -> Judged {
    match told {
        Some(Told::Connected) if caught == Some(true) => Judged::Failed(
            "NOT CAPTURED: a connection from inside the workload went where it was dialled, past the agent",
        ),
        Some(Told::Connected) => Judged::Failed(
            "a connection from inside the workload was taken, but the agent's worker does not know of it",
        ),
        Some(Told::Refused) if caught.is_none() => {
            Judged::Failed("a connection from inside the workload is refused, by the kernel side or past it")
        }
        Some(Told::Refused) => Judged::Failed(
            "the kernel side refuses connections from inside the workload that it should turn to the agent",
        ),
        Some(Told::Failed) => Judged::Failed("a connection from inside the workload fails"),
        Some(Told::NotInside) => Judged::Nothing,
        None => Judged::Failed("the canary broke off before it could tell"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_canary_that_no_worker_heard_of_is_a_finding_whatever_it_says() {
        for (told, _) in Told::ALL {
            for caught in [None, Some(false), Some(true)] {
                let judged = judge(Some(told), caught);
                let nothing = told == Told::NotInside;
                assert_eq!(matches!(judged, Judged::Failed(_)), !nothing, "{told:?}");
                let past = matches!(judged, Judged::Failed(why) if why.starts_with("NOT CAPTURED"));
                let expected = told == Told::Connected && caught == Some(true);
                assert_eq!(past, expected, "{told:?} {caught:?}");
            }
        }
        assert!(matches!(judge(None, None), Judged::Failed(_)));
    }
}
