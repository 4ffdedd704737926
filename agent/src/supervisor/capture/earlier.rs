//! What an earlier run held: taken up again, and no right of it stays that the policy does not give.

use std::collections::BTreeSet;

use super::{Capture, Error};

/// A cgroup that an earlier run held and that is no workload's any more, below the present `cgroup_parent` at least.
#[derive(Clone, Copy, Debug)]
pub(in crate::supervisor) struct Stranger {
    /// Its id.
    pub(in crate::supervisor) cgroup: u64,
    /// The kernel's number of it.
    pub(in crate::supervisor) number: u32,
}

impl Capture {
    /// Takes up each workload that is held already, whether or not the policy still has it: the next
    /// [`Capture::arm_all`] gives it what the policy says, which may be nothing. What has no name here any more keeps
    /// its programs and loses its rights at once; what is gone is forgotten.
    pub(super) fn take_up(&mut self) -> Result<(), Error> {
        let armed: BTreeSet<u64> = self.programs.armed().iter().map(|(id, _)| *id).collect();
        for (name, id) in self.workloads.present()? {
            if armed.contains(&id) {
                let held = self.hold(&name)?;
                self.held.insert(name, held);
            }
        }
        let known: BTreeSet<u64> = self.held.values().map(|held| held.id).collect();
        let strange: Vec<(u64, u32)> = self
            .programs
            .armed()
            .iter()
            .filter(|(id, _)| !known.contains(id))
            .copied()
            .collect();
        for (cgroup, number) in strange {
            if self.programs.exists(cgroup) {
                self.programs.withdraw(number)?;
                tracing::warn!(
                    cgroup,
                    number,
                    "an earlier run held a cgroup that is no workload now (another `cgroup_parent`?); it stays held, and nothing is allowed in it"
                );
                self.strangers.push(Stranger { cgroup, number });
            } else {
                self.programs.disarm(number)?;
            }
        }
        Ok(())
    }

    /// What stays held and can't be planned for.
    pub(in crate::supervisor) fn strangers(&self) -> &[Stranger] {
        &self.strangers
    }
}
