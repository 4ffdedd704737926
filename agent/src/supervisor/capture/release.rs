//! Letting go of one workload while the agent runs.

use crate::admin::Released;
use crate::enroll;
use crate::identity::WorkloadName;
use crate::policy::Policy;

use super::{Capture, Error};

impl Capture {
    /// Removes the workload's programs, its cgroup and the mark that units wait for. While processes run in it that is
    /// done only if `running` says so: they go out as they like then.
    ///
    /// # Errors
    /// If the policy has it, it is not held, processes run in it, or the system refuses; with the reason for whoever
    /// asked.
    pub(in crate::supervisor) fn release(
        &mut self,
        name: &WorkloadName,
        running: bool,
        policy: &Policy,
    ) -> Result<Released, String> {
        if policy.workload(name).is_some() {
            return Err(format!(
                "the policy still has the workload {name}; take it out and `callgate reload` first"
            ));
        }
        let Some(number) = self.held.get(name).map(|held| held.number) else {
            return Err(format!("no workload {name} is held"));
        };
        // Nothing more may start in it, so that what is empty now stays so.
        let said = |error: enroll::Error| error.to_string();
        self.workloads.disarm(name).map_err(said)?;
        let occupied = self.workloads.is_occupied(name).map_err(said)?;
        if occupied && !running {
            if self.intact {
                self.workloads.arm(name).map_err(said)?;
            }
            return Err(format!(
                "processes run in {name}; stop them, or let them go as they are (`--running`)"
            ));
        }
        self.let_go(name, number, policy)
            .map_err(|error| error.to_string())?;
        Ok(Released { running: occupied })
    }

    fn let_go(&mut self, name: &WorkloadName, number: u32, policy: &Policy) -> Result<(), Error> {
        self.leave_all(number);
        self.programs.disarm(number)?;
        self.held.remove(name);
        self.forget_sockets(name);
        self.workloads.release(name)?;
        self.arm_all(policy)?;
        Ok(())
    }
}
