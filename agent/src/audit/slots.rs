//! Which slots of the in-flight table are free, and how many each workload may hold.
//!
//! A workload's quota is set aside in full when its first call begins, so that no flood of another can take it.
//! What a workload that is quiet had set aside is given to a new one when there is no more.

use std::collections::HashMap;

use crate::identity::WorkloadName;

/// Free slots and quotas. `None` stands for connections that no workload could be named for.
#[derive(Debug)]
pub(super) struct Slots {
    free: Vec<u32>,
    used: HashMap<Option<WorkloadName>, u32>,
    quota: u32,
    capacity: u32,
}

/// Why there is no slot.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Full {
    /// The workload has as many calls under way as it may.
    Quota,
    /// Other workloads have set aside the whole table.
    Table,
}

impl Slots {
    pub(super) fn new(capacity: u32, quota: u32) -> Self {
        Self {
            // The last one freed is taken first: few pages stay warm.
            free: (0..capacity).rev().collect(),
            used: HashMap::new(),
            quota: quota.clamp(1, capacity.max(1)),
            capacity,
        }
    }

    pub(super) fn take(&mut self, workload: &Option<WorkloadName>) -> Result<u32, Full> {
        if !self.used.contains_key(workload) {
            self.set_aside(workload)?;
        }
        let used = self.used.get_mut(workload).ok_or(Full::Table)?;
        if *used >= self.quota {
            return Err(Full::Quota);
        }
        let slot = self.free.pop().ok_or(Full::Table)?;
        *used += 1;
        Ok(slot)
    }

    pub(super) fn give_back(&mut self, slot: u32, workload: &Option<WorkloadName>) {
        if let Some(used) = self.used.get_mut(workload) {
            *used = used.saturating_sub(1);
        }
        self.free.push(slot);
    }

    fn set_aside(&mut self, workload: &Option<WorkloadName>) -> Result<(), Full> {
        let most = (self.capacity / self.quota) as usize;
        if self.used.len() >= most {
            self.used.retain(|_, used| *used > 0);
        }
        if self.used.len() >= most {
            return Err(Full::Table);
        }
        self.used.insert(workload.clone(), 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(name: &str) -> Option<WorkloadName> {
        Some(WorkloadName::parse(name).unwrap())
    }

    #[test]
    fn a_flood_of_one_workload_leaves_the_others_their_quota() {
        let (a, b) = (workload("a"), workload("b"));
        let mut slots = Slots::new(5, 2);
        let first = slots.take(&a).unwrap();
        slots.take(&a).unwrap();
        assert_eq!(slots.take(&a), Err(Full::Quota));
        slots.take(&b).unwrap();
        slots.take(&b).unwrap();
        assert_eq!(slots.take(&None), Err(Full::Table));
        slots.give_back(first, &a);
        assert_eq!(slots.take(&a), Ok(first));
    }

    #[test]
    fn what_a_quiet_workload_set_aside_goes_to_a_new_one() {
        let (a, b) = (workload("a"), workload("b"));
        let mut slots = Slots::new(2, 2);
        let slot = slots.take(&a).unwrap();
        assert_eq!(slots.take(&b), Err(Full::Table));
        slots.give_back(slot, &a);
        slots.take(&b).unwrap();
        assert_eq!(slots.take(&a), Err(Full::Table));
    }
}
