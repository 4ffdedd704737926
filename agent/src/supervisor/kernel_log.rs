//! What the kernel side did, in the agent's own log, by the meaning of the levels (see `telemetry`): where something that
//! must hold does not, a warning, at most one in a while for each reason; refusals by policy, and direct connections, as
//! `debug`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::{Duration, Instant};

use crate::ebpf::{Reason, Report};

/// A workload can cause reports at will: a reason is warned of once in this time.
const QUIET: Duration = Duration::from_secs(10);

/// Remembers what it has warned of.
#[derive(Debug, Default)]
pub(super) struct KernelLog {
    reasons: BTreeMap<Reason, Instant>,
    faults: BTreeMap<String, Instant>,
}

impl KernelLog {
    /// Tells of each report.
    pub(super) fn tell(&mut self, reports: &[Report], now: Instant) {
        for report in reports {
            let origin = &report.origin;
            let (reason, workload) = (report.reason.as_str(), origin.workload());
            let (pid, destination) = (origin.tgid(), origin.destination());
            if self.is_due(report.reason, now) {
                tracing::warn!(reason, workload, pid, %destination, "the kernel side refuses what a rule may allow; `callgate status` counts");
            } else {
                tracing::debug!(reason, workload, pid, %destination, suppressed = report.suppressed, "seen in the kernel");
            }
        }
    }

    /// Tells of faults that the programs could only say in words.
    pub(super) fn tell_faults(&mut self, faults: Vec<String>, now: Instant) {
        self.faults.retain(|_, last| is_quiet(*last, now));
        for fault in faults {
            if let Entry::Vacant(new) = self.faults.entry(fault) {
                tracing::warn!(
                    fault = new.key(),
                    "the kernel side could not do its part; `callgate status` counts"
                );
                new.insert(now);
            }
        }
    }

    fn is_due(&mut self, reason: Reason, now: Instant) -> bool {
        let quiet = |last: &Instant| is_quiet(*last, now);
        let due = is_fault(reason) && !self.reasons.get(&reason).is_some_and(quiet);
        if due {
            self.reasons.insert(reason, now);
        }
        due
    }
}

fn is_quiet(last: Instant, now: Instant) -> bool {
    now.duration_since(last) < QUIET
}

/// The agent's or the host's fault, not what a workload may not do.
fn is_fault(reason: Reason) -> bool {
    match reason {
        Reason::AgentSilent
        | Reason::NoListener
        | Reason::ListenerNotOurs
        | Reason::MapFull
        | Reason::FlowLost
        | Reason::EventLost
        | Reason::OriginLost => true,
        Reason::Direct
        | Reason::Redirected
        | Reason::UnmarkedSocket
        | Reason::ForeignSocket
        | Reason::PortNotNamed
        | Reason::DeviceBound
        | Reason::UdpNotAllowed
        | Reason::SocketType
        | Reason::Egress
        | Reason::Ingress
        | Reason::HandedSocket
        | Reason::FlowShare
        | Reason::SourceAddress
        | Reason::SocketOption
        | Reason::Reflected
        | Reason::EventSuppressed => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_warned_of_once_in_a_while_and_a_refusal_never() {
        let (mut log, start) = (KernelLog::default(), Instant::now());
        assert!(!log.is_due(Reason::PortNotNamed, start));
        assert!(log.is_due(Reason::MapFull, start));
        assert!(!log.is_due(Reason::MapFull, start + QUIET / 2));
        assert!(log.is_due(Reason::AgentSilent, start + QUIET / 2));
        assert!(log.is_due(Reason::MapFull, start + QUIET));
    }

    #[test]
    fn what_programs_say_is_remembered_for_a_while_only() {
        let (mut log, start) = (KernelLog::default(), Instant::now());
        log.tell_faults(vec!["a".into(), "a".into(), "b".into()], start);
        assert_eq!(log.faults.len(), 2);
        log.tell_faults(vec!["c".into()], start + QUIET);
        assert_eq!(log.faults.len(), 1);
    }
}
