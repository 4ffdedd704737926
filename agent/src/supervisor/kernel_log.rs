//! What the kernel side did, in the agent's own log, by the meaning of the levels (see `telemetry`): where something that
//! must hold does not, a warning, at most one in a while for each reason; refusals by policy, and direct connections, as
//! `debug`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::ebpf::{Reason, Report};

/// A workload can cause reports at will: a reason is warned of once in this time.
const QUIET: Duration = Duration::from_secs(10);

/// Remembers what it has warned of.
#[derive(Debug, Default)]
pub(super) struct KernelLog(BTreeMap<Reason, Instant>);

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

    fn is_due(&mut self, reason: Reason, now: Instant) -> bool {
        let quiet = |last: &Instant| now.duration_since(*last) < QUIET;
        let due = is_fault(reason) && !self.0.get(&reason).is_some_and(quiet);
        if due {
            self.0.insert(reason, now);
        }
        due
    }
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
}
