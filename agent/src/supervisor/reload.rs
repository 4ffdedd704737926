//! A changed policy: put in force whole, or not at all.

use std::sync::Arc;
use std::time::Duration;

use super::crew::Role;
use super::{Error, FIRST_VALUES, Supervisor, credential, settle, unread};
use crate::admin::{Released, Reloaded};
use crate::credential::source::{Keeper, Value};
use crate::identity::WorkloadName;
use crate::memory;
use crate::policy::store::{self, Loaded};
use crate::policy::{CredentialName, Diagnostic, Policy, Source};

/// How long a new policy waits for the first values of its credentials.
const AT_ONCE: Duration = Duration::from_millis(200);

impl Supervisor {
    /// Reads the policy again. With errors, everything stays as it is.
    pub(super) async fn reload(&mut self) -> Reloaded {
        let done = self.try_reload().await;
        self.reload_error = (!done.ok).then(|| done.message.clone());
        done
    }

    async fn try_reload(&mut self) -> Reloaded {
        let Loaded { policy, sources } = store::load_dir(&self.config.policy_dir);
        let policy = match policy {
            Ok(policy) => Arc::new(policy),
            Err(found) => {
                let errors = lines(&found);
                tracing::error!(
                    count = found.len(),
                    "the new policy has errors; the last good one stays\n{errors}"
                );
                return Reloaded {
                    ok: false,
                    generation: self.generation,
                    message: errors,
                };
            }
        };
        match self.put_in_force(policy, sources).await {
            Ok(()) => Reloaded {
                ok: true,
                generation: self.generation,
                message: self.summary() + &self.to_look_at(),
            },
            Err(error) => {
                tracing::error!(%error, "the new policy could not be put in force");
                Reloaded {
                    ok: false,
                    generation: self.generation,
                    message: error.to_string(),
                }
            }
        }
    }

    /// What is in force, but not as its writer will have meant it; a line each.
    fn to_look_at(&self) -> String {
        let warnings = self.policy.warnings().iter().map(ToString::to_string);
        let without = self.keepers.iter().filter_map(|keeper| {
            let Some(Value::Unavailable { reason }) = keeper.current().map(|update| update.value) else {
                return None;
            };
            let name = &keeper.spec().name;
            Some(format!(
                "credential `{name}` has no value, calls that need it are refused: {reason}"
            ))
        });
        warnings
            .chain(without)
            .map(|line| format!("\nwarning: {line}"))
            .collect()
    }

    /// Lets go of one workload. What is in the policy would be held again at the next reload, so it can't be.
    pub(super) fn release(&mut self, name: &WorkloadName, running: bool) -> Result<Released, String> {
        let released = self.capture.release(name, running, &self.policy)?;
        self.answers.set_workloads(&self.capture);
        // The one that serves keeps its listeners to its end.
        self.replace_worker();
        tracing::warn!(workload = %name, running = released.running, "a workload was let go");
        Ok(released)
    }

    async fn put_in_force(&mut self, policy: Arc<Policy>, sources: Vec<Source>) -> Result<(), Error> {
        let fresh = match self.capture.arm_all(&policy) {
            Ok(fresh) => fresh,
            Err(error) => {
                // It may have come half-way: what it opened is closed again.
                if let Err(error) = self.capture.arm_all(&self.policy) {
                    tracing::error!(%error, "the kernel's plans can't be set back to the policy in force");
                }
                return Err(error);
            }
        };
        self.answers.set_workloads(&self.capture);
        self.policy = policy;
        self.records.end_left(self.policy.digest());
        self.sources = sources;
        self.generation += 1;
        // Files are read by then, and calls go on; for slower sources no revocation waits.
        let changed = self.keep_credentials();
        settle(&mut self.keepers, AT_ONCE).await;
        self.crew.tell(|worker, role| {
            // A value that was read for another definition does not serve the new one.
            for name in &changed {
                worker.send(unread(name))?;
            }
            worker.send(self.policy_message())?;
            for update in self.keepers.iter().filter_map(Keeper::current) {
                worker.send(credential(update))?;
            }
            if role != Role::Leaving {
                for offer in self.capture.listeners(Some(&fresh))? {
                    offer.to(worker)?;
                }
            }
            Ok(())
        });
        self.capture.mark_armed()?;
        settle(&mut self.keepers, FIRST_VALUES).await;
        self.crew.tell(|worker, _role| {
            for update in self.keepers.iter().filter_map(Keeper::current) {
                worker.send(credential(update))?;
            }
            Ok(())
        });
        memory::give_back();
        Ok(())
    }

    /// Keeps what is known of credentials that the new policy has unchanged; gives the names of the others.
    fn keep_credentials(&mut self) -> Vec<CredentialName> {
        let mut changed = Vec::new();
        let mut old = std::mem::take(&mut self.keepers);
        for spec in self.policy.credentials() {
            let kept = old.iter().position(|keeper| keeper.spec() == spec);
            self.keepers.push(match kept {
                Some(place) => old.swap_remove(place),
                None => {
                    changed.push(spec.name.clone());
                    Keeper::new(spec.clone())
                }
            });
        }
        changed
    }
}

fn lines(found: &[Diagnostic]) -> String {
    found
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}
