//! A workload's questions about names, put to the policy in force and, where refused, on record.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::addr::HostName;
use crate::audit::record::{Caller, Decision, Protocol};
use crate::audit::{Kind, Outcome};
use crate::dns::stub::Rules;
use crate::identity::WorkloadName;
use crate::policy::DenialReason;
use crate::proxy::Shared;

/// Records of refused names that one workload may cause within [`WINDOW`]; the rest is counted in the next.
const RECORDS: u32 = 20;
const WINDOW: Duration = Duration::from_secs(1);

/// One workload's names.
pub(super) struct Names {
    shared: Arc<Shared>,
    workload: WorkloadName,
    window: Mutex<Window>,
}

struct Window {
    since: Instant,
    written: u32,
    left_out: u64,
}

impl Names {
    pub(super) fn new(shared: Arc<Shared>, workload: WorkloadName) -> Self {
        let window = Window {
            since: Instant::now(),
            written: 0,
            left_out: 0,
        };
        Self {
            shared,
            workload,
            window: Mutex::new(window),
        }
    }

    /// How many refusals the next record stands for; `None` if it has to wait.
    fn count(&self) -> Option<u64> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.since.elapsed() >= WINDOW {
            (window.since, window.written) = (Instant::now(), 0);
        }
        if window.written >= RECORDS {
            window.left_out += 1;
            return None;
        }
        window.written += 1;
        Some(std::mem::take(&mut window.left_out) + 1)
    }
}

impl Rules for Names {
    fn mentions(&self, host: &HostName) -> bool {
        let enforced = self.shared.policy.current();
        enforced
            .policy
            .workload(&self.workload)
            .is_some_and(|workload| workload.mentions(host))
    }

    fn refused(&self, name: &str) {
        let Some(count) = self.count() else { return };
        let caller = Caller {
            workload: Some(self.workload.clone()),
            ..Caller::default()
        };
        let mut record = self.shared.audit.record(Kind::Dns, Arc::new(caller));
        record.policy = Some(Arc::clone(&self.shared.policy.current().version));
        record.protocol = Some(Protocol::Udp);
        record.authority = Some(crate::audit::record::clip(name, 253).into());
        record.decision = Some(Decision::Deny);
        record.reason = Some(DenialReason::HostNotAllowed.code().into());
        record.outcome = Outcome::Denied;
        record.count = Some(count);
        self.shared.audit.append(&record);
    }
}
