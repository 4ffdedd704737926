//! What runs, for the operator.

use super::Supervisor;
use crate::admin::{CanaryStatus, CredentialStatus, Status, StrangerStatus, WorkloadStatus};
use crate::credential::source::{Keeper, Value};

impl Supervisor {
    pub(super) fn status(&self) -> Status {
        let figures = self.crew.figures();
        let connections = |name: &str| {
            figures
                .workloads
                .iter()
                .find(|one| one.workload.as_str() == name)
                .map_or(0, |one| one.connections)
        };
        let audit_error = figures.audit_error.as_deref().or(self.records.failure());
        let audit_error = audit_error.map(ToOwned::to_owned);
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_s: self.started.elapsed().unwrap_or_default().as_secs(),
            policy_digest: self.policy.digest().to_string(),
            generation: self.generation,
            reload_error: self.reload_error.clone(),
            worker_pid: self.crew.serving(),
            draining: self.crew.leaving() + self.records.left().len(),
            worker_error: self.worker_error.clone(),
            audit_ok: audit_error.is_none(),
            audit_error,
            trust_error: self.roots_watch.failure().map(ToOwned::to_owned),
            calls: figures.calls,
            denied: figures.denied,
            failed: figures.failed,
            perimeter_intact: self.capture.is_intact(),
            perimeter_repairs: self.capture.repairs(),
            workloads: self
                .capture
                .workloads()
                .map(|(name, cgroup, number)| WorkloadStatus {
                    name: name.to_string(),
                    cgroup: cgroup.to_owned(),
                    number,
                    connections: connections(name.as_str()),
                    in_policy: self.policy.workload(name).is_some(),
                })
                .collect(),
            canaries: self
                .canaries
                .findings()
                .map(|(cage, finding)| CanaryStatus {
                    workload: cage.workload.to_string(),
                    netns: cage.space.as_ref().map(|space| space.inode),
                    finding: finding.to_owned(),
                })
                .collect(),
            strangers: self
                .capture
                .strangers()
                .iter()
                .map(|stranger| StrangerStatus {
                    cgroup_id: stranger.cgroup,
                    number: stranger.number,
                })
                .collect(),
            credentials: self.keepers.iter().map(credential_status).collect(),
            kernel: self.capture.counters(),
        }
    }
}

fn credential_status(keeper: &Keeper) -> CredentialStatus {
    let name = keeper.spec().name.to_string();
    match keeper.current().map(|update| update.value) {
        Some(Value::Ready { version, .. }) => CredentialStatus {
            name,
            version: Some(version.to_string()),
            reason: None,
        },
        Some(Value::Unavailable { reason }) => CredentialStatus {
            name,
            version: None,
            reason: Some(reason.to_string()),
        },
        None => CredentialStatus {
            name,
            version: None,
            reason: Some("not read yet".into()),
        },
    }
}
