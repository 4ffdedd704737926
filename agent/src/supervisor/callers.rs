//! Who the kernel's reports are about, found out beside the supervisor's loop.
//!
//! A caller chooses what its executable lies on, and the user database may be a directory service: either can keep
//! whoever asks waiting for ever. So a thread of its own asks, and a report that waits too long is recorded with the
//! kernel's own facts.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::audit::record::{self, Caller, PolicyVersion};
use crate::ebpf::{Origin, Report};
use crate::identity::resolve::{Claim, Resolver, Want};
use crate::identity::{Cgroup, WorkloadName};

/// How long the facts of a report may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Batches that wait for the thread at once.
const WAITING: usize = 64;

/// One report, and the workload that the kernel's number means.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    pub(super) report: Report,
    pub(super) workload: Option<WorkloadName>,
}

/// A report that can be recorded.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) report: Report,
    pub(super) caller: Caller,
    /// The policy that was in force when it was heard.
    pub(super) policy: Arc<PolicyVersion>,
}

/// The thread that finds out, and what it has not answered yet.
#[derive(Debug)]
pub(super) struct Callers {
    ask: SyncSender<Batch>,
    found: Receiver<(u64, Vec<Caller>)>,
    waiting: VecDeque<Batch>,
    next: u64,
}

#[derive(Clone, Debug)]
struct Batch {
    number: u64,
    /// After this it is recorded without.
    until: Instant,
    heard: Arc<[Heard]>,
    policy: Arc<PolicyVersion>,
}

impl Callers {
    /// Starts the thread; it ends with this.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub(super) fn start(resolver: Arc<Resolver>) -> std::io::Result<Self> {
        let (ask, asked) = sync_channel::<Batch>(WAITING);
        let (tell, found) = channel();
        thread::Builder::new().name("callers".into()).spawn(move || {
            for batch in asked {
                // Nobody waits for these any more.
                if Instant::now() >= batch.until {
                    continue;
                }
                let callers = batch.heard.iter().map(|heard| caller(heard, &resolver));
                if tell.send((batch.number, callers.collect())).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self {
            ask,
            found,
            waiting: VecDeque::new(),
            next: 0,
        })
    }

    /// Begins to find out who these are about.
    pub(super) fn ask(&mut self, heard: Vec<Heard>, policy: Arc<PolicyVersion>) {
        if heard.is_empty() {
            return;
        }
        let mut batch = Batch {
            number: self.next,
            until: Instant::now() + PATIENCE,
            heard: heard.into(),
            policy,
        };
        self.next += 1;
        if self.ask.try_send(batch.clone()).is_err() {
            batch.until = Instant::now();
        }
        self.waiting.push_back(batch);
    }

    /// What can be recorded by now.
    pub(super) fn named(&mut self) -> Vec<Named> {
        let mut named = Vec::new();
        while let Ok(found) = self.found.try_recv() {
            self.take(found, &mut named);
        }
        let now = Instant::now();
        let (late, waiting) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|batch| now >= batch.until);
        self.waiting = waiting;
        for batch in late {
            pair(batch, None, &mut named);
        }
        named
    }

    /// All that is left, at the end; waits for it as long as any report may.
    pub(super) fn rest(&mut self) -> Vec<Named> {
        let mut named = Vec::new();
        while let Some(batch) = self.waiting.back() {
            let left = batch.until.saturating_duration_since(Instant::now());
            match self.found.recv_timeout(left) {
                Ok(found) => self.take(found, &mut named),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        for batch in std::mem::take(&mut self.waiting) {
            pair(batch, None, &mut named);
        }
        named
    }

    fn take(&mut self, (number, callers): (u64, Vec<Caller>), named: &mut Vec<Named>) {
        let place = self.waiting.iter().position(|batch| batch.number == number);
        if let Some(batch) = place.and_then(|place| self.waiting.remove(place)) {
            pair(batch, Some(callers), named);
        }
    }
}

fn pair(batch: Batch, callers: Option<Vec<Caller>>, named: &mut Vec<Named>) {
    let mut callers = callers.unwrap_or_default().into_iter();
    named.extend(batch.heard.iter().map(|heard| Named {
        report: heard.report,
        caller: callers.next().unwrap_or_else(|| of_kernel(heard)),
        policy: Arc::clone(&batch.policy),
    }));
}

/// Who it was, from what `/proc` and the cgroup tree still say of it; where they say nothing any more, from the
/// kernel's own facts alone.
fn caller(heard: &Heard, resolver: &Resolver) -> Caller {
    let origin = &heard.report.origin;
    let want = Want {
        exe: true,
        digest: false,
    };
    if origin.has_caller()
        && let Ok(identity) = resolver.resolve(&Claim::from(origin), want)
    {
        let mut caller = Caller::from(&identity);
        // The kernel reported the file even where its path can't be proven.
        caller.exe = caller.exe.or_else(|| exe(origin));
        return caller;
    }
    of_kernel(heard)
}

fn of_kernel(heard: &Heard) -> Caller {
    let origin = &heard.report.origin;
    let workload = heard.workload.clone();
    if !origin.has_caller() {
        return Caller {
            workload,
            ..Caller::default()
        };
    }
    Caller {
        workload,
        cgroup: Some(Cgroup {
            id: origin.cgroup_id(),
            path: None,
        }),
        pid: origin.tgid(),
        start_time: origin.start_time(),
        uid: Some(origin.uid()),
        gid: Some(origin.gid()),
        comm: Some(String::from_utf8_lossy(origin.comm()).into()),
        exe: exe(origin),
        ..Caller::default()
    }
}

fn exe(origin: &Origin) -> Option<record::Exe> {
    origin.exe().map(|(device, inode)| record::Exe {
        path: None,
        device,
        inode,
        sha256: None,
    })
}
