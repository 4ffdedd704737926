//! Canaries: one connect from inside each workload every minute, which has to arrive at the workload's listener; and from
//! each network namespace that it is served in.
//!
//! The perimeter is guarded by looking at what should be there; this looks at what it does. The process that connects is
//! the agent's own, put into the workload's cgroup (and network namespace) with nothing but these in hand, and dials a
//! loopback address at which the supervisor itself listens meanwhile: a canary that nobody turns round ends there, and
//! reaches no network.

mod flight;
mod rounds;
mod trap;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::process::{Child, Command};

use crate::channel::CANARY;
use crate::ebpf::Netns;
use crate::identity::WorkloadName;
use crate::rights;

use super::Supervisor;
use super::sandbox::Unprivileged;
use flight::{Flying, Judged};
use rounds::Rounds;
use trap::Trap;

pub(super) use flight::Flights;
pub use flight::Told;

/// Canaries at once.
const AT_ONCE: usize = 16;

/// The room of a workload from which its canaries set out.
pub const ROOM: &str = "canary";

/// Where to send a canary.
#[derive(Clone, Debug)]
pub(super) struct Cage {
    /// The workload's name.
    pub(super) workload: WorkloadName,
    /// Its number.
    pub(super) number: u32,
    /// Which network namespace, if not the agent's own.
    pub(super) space: Option<Space>,
}

/// A network namespace that a workload is served in.
#[derive(Clone, Debug)]
pub(super) struct Space {
    /// The namespace.
    pub(super) netns: Arc<Netns>,
    /// Its inode, which is how tools show it.
    pub(super) inode: u64,
}

/// A workload's number, and a namespace's cookie if it is not the agent's own.
type Key = (u32, Option<u64>);

impl Cage {
    fn key(&self) -> Key {
        let cookie = self.space.as_ref().map(|space| space.netns.cookie());
        (self.number, cookie)
    }
}

impl fmt::Display for Cage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.space {
            None => write!(f, "{}", self.workload),
            Some(space) => write!(f, "{} in net:[{}]", self.workload, space.inode),
        }
    }
}

/// What a canary brought.
#[derive(Debug)]
pub(super) enum Sung {
    /// The workload's connections are not captured there.
    Failed {
        /// Where.
        cage: Cage,
        /// What came of it.
        why: &'static str,
        /// Whether that is news.
        fresh: bool,
    },
    /// They are again.
    Well(Cage),
}

/// All canaries.
#[derive(Debug)]
pub(super) struct Canaries {
    user: Unprivileged,
    /// Cookie of the agent's own network namespace.
    home: u64,
    rounds: Rounds,
    waiting: VecDeque<Cage>,
    flying: Vec<Flying>,
    flights: Flights,
    /// By namespace, while canaries fly there; `None` where the agent can't listen.
    traps: BTreeMap<Option<u64>, Option<Trap>>,
    findings: BTreeMap<Key, (Cage, &'static str)>,
}

impl Canaries {
    /// The first ones fly after this interval.
    pub(super) fn new(interval: Duration, user: Unprivileged, home: u64) -> Self {
        Self {
            user,
            home,
            rounds: Rounds::new(interval),
            waiting: VecDeque::new(),
            flying: Vec::new(),
            flights: Flights::default(),
            traps: BTreeMap::new(),
            findings: BTreeMap::new(),
        }
    }

    /// Who is expected where.
    pub(super) fn flights(&self) -> Flights {
        self.flights.clone()
    }

    /// Whether it is time for a round.
    pub(super) fn is_due(&self) -> bool {
        self.waiting.is_empty() && self.flying.is_empty() && self.rounds.is_due()
    }

    /// Sends canaries into these, as far as it is their turn, and into no others.
    pub(super) fn begin(&mut self, cages: Vec<Cage>) {
        let keys: Vec<Key> = cages.iter().map(Cage::key).collect();
        self.findings.retain(|key, _| keys.contains(key));
        let failed = |cage: &Cage| self.findings.contains_key(&cage.key());
        self.waiting = self.rounds.choose(cages, failed).into();
    }

    /// The workload has left this namespace.
    pub(super) fn forget(&mut self, number: u32, netns: u64) {
        let is_there = |cage: &Cage| cage.key() == (number, Some(netns));
        self.findings.remove(&(number, Some(netns)));
        self.waiting.retain(|cage| !is_there(cage));
        self.flying.retain(|one| !is_there(&one.cage));
    }

    /// Where connections are not captured, and why.
    pub(super) fn findings(&self) -> impl Iterator<Item = (&Cage, &str)> {
        self.findings.values().map(|(cage, why)| (cage, *why))
    }

    /// Starts what can be started, `enter` giving the file by which a process enters a workload; gives what changed.
    pub(super) fn look(&mut self, mut enter: impl FnMut(&WorkloadName) -> Result<File, String>) -> Vec<Sung> {
        let mut sung = Vec::new();
        for trap in self.traps.values_mut().flatten() {
            trap.look();
        }
        for mut one in std::mem::take(&mut self.flying) {
            let trap = self.traps.get(&one.cage.key().1).and_then(Option::as_ref);
            match one.judge(trap) {
                None => self.flying.push(one),
                Some(judged) => sung.extend(self.note(one.cage.clone(), judged)),
            }
        }
        while self.flying.len() < AT_ONCE {
            let Some(cage) = self.waiting.pop_front() else {
                break;
            };
            let shown = cage.to_string();
            match enter(&cage.workload).and_then(|procs| self.release(cage, procs)) {
                Ok(flying) => self.flying.push(flying),
                Err(why) => {
                    tracing::warn!(
                        why,
                        workload = shown,
                        "no canary could be sent; the next round tries again"
                    )
                }
            }
        }
        let flying: Vec<Option<u64>> = self.flying.iter().map(|one| one.cage.key().1).collect();
        self.traps.retain(|space, _| flying.contains(space));
        sung
    }

    fn release(&mut self, cage: Cage, procs: File) -> Result<Flying, String> {
        let space = cage.space.as_ref().map(|space| Arc::clone(&space.netns));
        self.traps
            .entry(cage.key().1)
            .or_insert_with(|| Trap::set(space.as_deref()));
        let netns = space.map(|netns| netns.file()).transpose();
        let netns = netns.map_err(|error| error.to_string())?;
        let user = self.user;
        self.flights.start(cage, self.home, || spawn(user, procs, netns))
    }

    fn note(&mut self, cage: Cage, judged: Judged) -> Option<Sung> {
        match judged {
            Judged::Well => self.findings.remove(&cage.key()).map(|_why| Sung::Well(cage)),
            // It has not connected, so nothing is known.
            Judged::Nothing => {
                tracing::warn!(workload = %cage, "a canary could not enter the workload; the next round tries again");
                None
            }
            Judged::Failed(why) => {
                self.rounds.hurry();
                let before = self.findings.insert(cage.key(), (cage.clone(), why));
                let fresh = before.is_none_or(|(_, before)| before != why);
                Some(Sung::Failed { cage, why, fresh })
            }
        }
    }
}

fn spawn(user: Unprivileged, procs: File, netns: Option<OwnedFd>) -> std::io::Result<Child> {
    let mut command = Command::new(Path::new("/proc/self/exe"));
    command
        .arg("canary")
        .arg(format!("--uid={}", user.uid))
        .arg(format!("--gid={}", user.gid));
    let mut handed = rights::TO_BECOME_ANOTHER.to_vec();
    if netns.is_some() {
        command.arg("--netns");
        handed.push(rights::TO_ENTER_NAMESPACES);
    }
    command
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(procs))
        .stdout(netns.map_or_else(Stdio::null, Stdio::from))
        .stderr(Stdio::null())
        .kill_on_drop(true);
    rights::hand_on(&handed, || command.spawn())
}

impl Supervisor {
    /// Sends canaries when it is time, says what came of them, and puts back what may be missing.
    pub(super) fn look_after_canaries(&mut self) {
        // Without one that serves nothing can arrive, and status says so.
        let serves = self.crew.serving().is_some() && !self.headroom.is_short();
        if serves && self.canaries.is_due() {
            let cages = self.capture.cages();
            let cages = cages.into_iter().filter(|cage| self.may_fly(&cage.workload));
            let cages = cages.collect();
            self.canaries.begin(cages);
        }
        let capture = &mut self.capture;
        let mut failed = false;
        for sung in self.canaries.look(|workload| capture.cage(workload)) {
            match sung {
                Sung::Failed { cage, why, fresh } => {
                    failed = true;
                    if fresh {
                        tracing::error!(workload = %cage, why, "the workload's canary failed");
                        self.records.canary_failed(&cage.workload, &describe(&cage, why));
                    }
                }
                Sung::Well(cage) => tracing::info!(workload = %cage, "the workload's canary arrives again"),
            }
        }
        if failed && let Err(error) = self.capture.mend(&self.policy) {
            tracing::error!(%error, "what the kernel side knows of the workloads can't be written anew");
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

/// What a record says of it.
fn describe(cage: &Cage, why: &str) -> String {
    match &cage.space {
        None => why.to_owned(),
        Some(space) => format!("in the network namespace net:[{}]: {why}", space.inode),
    }
}
