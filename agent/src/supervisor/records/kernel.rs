//! Records of what the kernel decided: refusals, and connections that a direct rule let pass.
//!
//! Each is looked up in `/proc` and has a record of its own, unless one workload causes many: a flood of the same kind
//! becomes one record a second with their count, and costs no look at anything.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::audit::record::{self, Caller, Decision, PolicyVersion, Protocol, Record};
use crate::audit::{Kind, Outcome};
use crate::ebpf::{Origin, Reason, Report};
use crate::identity::resolve::{Claim, Resolver, Want};
use crate::identity::{Cgroup, WorkloadName};
use crate::policy::Policy;

use super::super::answers::Answers;
use super::super::capture::Capture;
use super::super::foreign::Uncut;
use super::{Records, blank, digest};

/// Records of one kind that a workload has for itself within [`WINDOW`].
const EACH: u32 = 10;
const WINDOW: Duration = Duration::from_secs(1);

/// What each workload has caused of each kind lately.
#[derive(Debug, Default)]
pub(super) struct Floods(HashMap<(u32, Reason), Flood>);

#[derive(Debug)]
struct Flood {
    since: Instant,
    recorded: u32,
    left_out: u64,
}

impl Floods {
    /// Whether this one has a record of its own; what has none is counted.
    fn is_each(&mut self, report: &Report, now: Instant) -> bool {
        // A connection that passed is not a try: each that the kernel tells of has its record, and each destination of
        // those that it only counted.
        if report.reason == Reason::Direct {
            return true;
        }
        let flood = self.flood(report.origin.workload(), report.reason, now);
        // Of a sum nothing else is known that a record could say.
        let each = flood.recorded < EACH && report.suppressed == 0;
        if each {
            flood.recorded += 1;
        } else {
            flood.left_out += u64::from(report.suppressed) + 1;
        }
        each
    }

    fn flood(&mut self, workload: u32, reason: Reason, now: Instant) -> &mut Flood {
        self.0.entry((workload, reason)).or_insert(Flood {
            since: now,
            recorded: 0,
            left_out: 0,
        })
    }

    /// The floods whose second is over: workload, kind and how many have no record of their own.
    fn over(&mut self, now: Instant) -> Vec<(u32, Reason, u64)> {
        let mut over = Vec::new();
        self.0.retain(|(workload, reason), flood| {
            let goes_on = now.duration_since(flood.since) < WINDOW;
            if !goes_on && flood.left_out > 0 {
                over.push((*workload, *reason, flood.left_out));
            }
            goes_on
        });
        over
    }
}

/// How long facts about a caller may take: what can't be seen by then is not in its record.
const FACTS: Duration = Duration::from_secs(1);

/// Records whose callers are being looked at.
#[derive(Debug)]
pub(super) struct Looking {
    under_way: usize,
    found: mpsc::UnboundedReceiver<Record>,
    tell: mpsc::UnboundedSender<Record>,
}

impl Default for Looking {
    fn default() -> Self {
        let (tell, found) = mpsc::unbounded_channel();
        Self {
            under_way: 0,
            found,
            tell,
        }
    }
}

impl Looking {
    /// Looks at who it was, beside everything else: a file system that hangs must hold up nobody.
    fn look(&mut self, answers: &Arc<Answers>, origin: Origin, mut record: Record) {
        self.under_way += 1;
        let (answers, tell) = (Arc::clone(answers), self.tell.clone());
        tokio::spawn(async move {
            let look = answers.about(origin.workload(), move |resolver| proven(&origin, resolver));
            if let Ok(Ok(Some(caller))) = tokio::time::timeout(FACTS, look).await {
                record.caller = caller.into();
            }
            // The receiver lives as long as the supervisor.
            drop(tell.send(record));
        });
    }

    fn take(&mut self) -> Vec<Record> {
        let found: Vec<_> = std::iter::from_fn(|| self.found.try_recv().ok()).collect();
        self.under_way = self.under_way.saturating_sub(found.len());
        found
    }
}

impl Records {
    /// Waits for the facts of the last records.
    pub(in super::super) async fn last_facts(&mut self) {
        while self.looking.under_way > 0 {
            let Some(record) = self.looking.found.recv().await else {
                return;
            };
            self.looking.under_way -= 1;
            self.append(&record);
        }
    }

    /// Records what the kernel reported since the last time. Call it also when that is nothing. After the `last` time
    /// nothing is kept for later but what [`Records::last_facts`] waits for.
    pub(in super::super) fn kernel(
        &mut self,
        reports: &[Report],
        capture: &Capture,
        (policy, generation): (&Policy, u64),
        answers: &Arc<Answers>,
        last: bool,
    ) {
        for record in self.looking.take() {
            self.append(&record);
        }
        let now = Instant::now();
        let version = Arc::new(PolicyVersion {
            digest: digest(policy.digest()),
            generation,
        });
        for report in reports {
            if !self.floods.is_each(report, now) {
                continue;
            }
            let workload = capture.name_of(report.origin.workload()).cloned();
            let mut record = blank(kind(report.reason), reported(&report.origin, workload));
            let destination = report.origin.destination();
            record.original_destination =
                Some(destination).filter(|to| to.port() != 0 || !to.ip().is_unspecified());
            record.protocol = protocol(report.origin.protocol());
            let count = u64::from(report.suppressed) + 1;
            decided(&mut record, report.reason, count, &version);
            if report.origin.has_caller() {
                self.looking.look(answers, report.origin, record);
            } else {
                self.append(&record);
            }
        }
        for (workload, reason, count) in self.floods.over(if last { now + WINDOW } else { now }) {
            let caller = Caller {
                workload: capture.name_of(workload).cloned(),
                ..Caller::default()
            };
            let mut record = blank(kind(reason), caller);
            decided(&mut record, reason, count, &version);
            self.append(&record);
        }
    }

    /// A managed process holds a socket that no program sees, and nothing can keep it from using it.
    pub(in crate::supervisor) fn uncut_socket(&mut self, workload: Option<WorkloadName>, uncut: &Uncut) {
        let what = format!(
            "a socket from outside of the workload can't be cut off: {}",
            uncut.why
        );
        self.finding(reported(&uncut.holder.origin, workload), "handed_socket", &what);
    }
}

fn decided(record: &mut Record, reason: Reason, count: u64, version: &Arc<PolicyVersion>) {
    record.policy = Some(Arc::clone(version));
    record.count = Some(count);
    if reason == Reason::Direct {
        record.decision = Some(Decision::Allow);
        record.outcome = Outcome::Completed;
    } else {
        record.decision = Some(Decision::Deny);
        record.outcome = Outcome::Denied;
        record.reason = Some(reason.as_str().into());
    }
}

fn kind(reason: Reason) -> Kind {
    if reason == Reason::Direct {
        Kind::Direct
    } else {
        Kind::KernelRefusal
    }
}

fn protocol(number: u8) -> Option<Protocol> {
    match number {
        6 => Some(Protocol::Tcp),
        17 => Some(Protocol::Udp),
        _ => None,
    }
}

/// Who it was, from what `/proc` and the cgroup tree still say of it; `None` where they say nothing any more. Blocks.
fn proven(origin: &Origin, resolver: &Resolver) -> Option<Caller> {
    let want = Want {
        exe: true,
        digest: false,
    };
    let identity = resolver.resolve(&Claim::from(origin), want).ok()?;
    let mut caller = Caller::from(&identity);
    // The kernel reported the file even where its path can't be proven.
    caller.exe = caller.exe.or_else(|| exe(origin));
    Some(caller)
}

/// Who it was, from the kernel's own facts alone.
fn reported(origin: &Origin, workload: Option<WorkloadName>) -> Caller {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn report(reason: Reason, suppressed: u32) -> Report {
        Report {
            reason,
            origin: Origin::EMPTY,
            suppressed,
        }
    }

    #[test]
    fn a_flood_has_a_few_records_of_its_own_and_one_for_the_rest() {
        let mut floods = Floods::default();
        let start = Instant::now();
        let each = (0..1000)
            .filter(|_| floods.is_each(&report(Reason::PortNotNamed, 0), start))
            .count();
        assert_eq!(each, EACH as usize);
        assert!(
            floods.is_each(&report(Reason::UdpNotAllowed, 0), start),
            "another kind"
        );
        // What the kernel counted is of a known kind too.
        assert!(!floods.is_each(&report(Reason::PortNotNamed, 499), start));
        assert!(!floods.is_each(&report(Reason::Egress, 6), start));
        assert!(floods.over(start).is_empty());
        let mut over = floods.over(start + WINDOW);
        over.sort_by_key(|(_, reason, _)| *reason as u32);
        let expected = [
            (0, Reason::PortNotNamed, 1500 - u64::from(EACH)),
            (0, Reason::Egress, 7),
        ];
        assert_eq!(over, expected);
        assert!(floods.over(start + WINDOW).is_empty());
        assert!(floods.is_each(&report(Reason::PortNotNamed, 0), start + WINDOW));
    }

    #[test]
    fn a_connection_that_passed_is_never_left_out() {
        let mut floods = Floods::default();
        let start = Instant::now();
        assert!((0..1000).all(|_| floods.is_each(&report(Reason::Direct, 3), start)));
        assert!(floods.over(start + WINDOW).is_empty());
    }
}
