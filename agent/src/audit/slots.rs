//! Which slots of the in-flight table are free, and how many each workload may hold.
//!
//! Each workload of the policy has a few slots that are its own whatever others do; the rest is a pool that all share,
//! up to a quota for each. So a flood of one workload takes neither another's own slots nor, alone, the whole pool.

use foldhash::{HashMap, HashSet};

use crate::identity::WorkloadName;

/// Slots that are a workload's own. With very many workloads they have fewer each: half of the table at most is set
/// aside.
const OWN: u32 = 64;

/// Whose slot it is. `None` stands for connections that no workload could be named for.
pub(super) type Holder = Option<WorkloadName>;

/// Free slots and quotas.
#[derive(Debug)]
pub(super) struct Slots {
    free: Vec<u32>,
    used: HashMap<Holder, u32>,
    /// Who has slots of its own.
    entitled: HashSet<Holder>,
    own: u32,
    /// Slots set aside that their owners don't hold at present.
    reserved: u32,
    quota: u32,
    capacity: u32,
}

/// Why there is no slot.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Full {
    /// The workload has as many calls under way as it may.
    Quota,
    /// The workload holds all its own slots, and the pool is used up.
    Table,
}

impl Slots {
    pub(super) fn new(capacity: u32, quota: u32) -> Self {
        Self {
            // The last one freed is taken first: few pages stay warm.
            free: (0..capacity).rev().collect(),
            used: HashMap::default(),
            entitled: HashSet::default(),
            own: 0,
            reserved: 0,
            quota: quota.clamp(1, capacity.max(1)),
            capacity,
        }
    }

    /// The most slots that one workload may hold.
    pub(super) fn quota(&self) -> usize {
        self.quota as usize
    }

    /// Sets slots aside for these workloads, and for nobody else but those that can't be named.
    pub(super) fn entitle(&mut self, workloads: impl IntoIterator<Item = WorkloadName>) {
        self.entitled = workloads.into_iter().map(Some).collect();
        self.entitled.insert(None);
        let each = u32::try_from(self.entitled.len()).map_or(0, |count| self.capacity / 2 / count);
        self.own = each.min(OWN).min(self.quota);
        self.used.retain(|_, used| *used > 0);
        let missing = |one: &Holder| self.own.saturating_sub(self.used.get(one).copied().unwrap_or(0));
        self.reserved = self.entitled.iter().map(missing).sum();
    }

    pub(super) fn take(&mut self, holder: &Holder) -> Result<u32, Full> {
        let used = self.used.get(holder).copied().unwrap_or(0);
        if used >= self.quota {
            return Err(Full::Quota);
        }
        let own = used < self.own && self.entitled.contains(holder);
        if !own && self.free.len() <= self.reserved as usize {
            return Err(Full::Table);
        }
        let slot = self.free.pop().ok_or(Full::Table)?;
        if own {
            self.reserved = self.reserved.saturating_sub(1);
        }
        match self.used.get_mut(holder) {
            Some(used) => *used += 1,
            None => drop(self.used.insert(holder.clone(), 1)),
        }
        Ok(slot)
    }

    pub(super) fn give_back(&mut self, slot: u32, holder: &Holder) {
        if let Some(used) = self.used.get_mut(holder) {
            *used = used.saturating_sub(1);
            if *used < self.own && self.entitled.contains(holder) {
                self.reserved += 1;
            }
        }
        self.free.push(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(name: &str) -> WorkloadName {
        WorkloadName::parse(name).unwrap()
    }

    fn slots(capacity: u32, quota: u32, names: &[&str]) -> Slots {
        let mut slots = Slots::new(capacity, quota);
        slots.entitle(names.iter().map(|name| workload(name)));
        slots
    }

    fn fill(slots: &mut Slots, holder: &Holder) -> (Vec<u32>, Full) {
        let mut taken = Vec::new();
        loop {
            match slots.take(holder) {
                Ok(slot) => taken.push(slot),
                Err(full) => return (taken, full),
            }
        }
    }

    #[test]
    fn a_flood_of_one_workload_leaves_each_other_its_own_slots() {
        let names: Vec<String> = (0..20).map(|number| format!("w{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut slots = slots(8192, 8192, &names);
        let (taken, full) = fill(&mut slots, &Some(workload("w0")));
        assert_eq!((taken.len(), full), (8192 - 20 * 64, Full::Table));
        for name in &names[1..] {
            let (taken, full) = fill(&mut slots, &Some(workload(name)));
            assert_eq!((taken.len(), full), (64, Full::Table), "{name}");
        }
        assert_eq!(fill(&mut slots, &None).0.len(), 64);
        assert_eq!(fill(&mut slots, &Some(workload("unknown"))).0.len(), 0);
        assert!(slots.free.is_empty());
    }

    #[test]
    fn more_than_four_workloads_can_be_under_load_at_once() {
        let mut slots = slots(8192, 2048, &["a", "b", "c", "d", "e"]);
        for name in ["a", "b", "c"] {
            assert_eq!(fill(&mut slots, &Some(workload(name))).1, Full::Quota);
        }
        assert!(fill(&mut slots, &Some(workload("d"))).0.len() > 1000);
        assert_eq!(fill(&mut slots, &Some(workload("e"))).0.len(), 64);
    }

    #[test]
    fn what_was_taken_can_be_taken_again_by_whoever_may() {
        let (a, b) = (Some(workload("a")), Some(workload("b")));
        let mut slots = slots(12, 12, &["a", "b"]);
        let (taken, _) = fill(&mut slots, &a);
        assert_eq!(taken.len(), 12 - 2 * 2);
        for slot in taken {
            slots.give_back(slot, &a);
        }
        assert_eq!(fill(&mut slots, &b).0.len(), 12 - 2 * 2);
        assert_eq!(fill(&mut slots, &a).0.len(), 2);
    }

    #[test]
    fn a_new_policy_sets_aside_for_its_workloads_as_slots_come_back() {
        let (a, b) = (Some(workload("a")), Some(workload("b")));
        let mut slots = slots(8, 8, &["a"]);
        let (taken, _) = fill(&mut slots, &a);
        slots.entitle([workload("b")]);
        for slot in taken {
            slots.give_back(slot, &a);
        }
        assert_eq!(fill(&mut slots, &a).0.len(), 8 - 2 * 2);
        assert_eq!(fill(&mut slots, &b).0.len(), 2);
    }

    #[test]
    fn whatever_the_order_of_calls_nobody_is_refused_a_slot_of_its_own() {
        let names = ["a", "b", "c"].map(|name| Some(workload(name)));
        let mut slots = slots(24, 10, &["a", "b", "c"]);
        let mut held: Vec<(u32, usize)> = Vec::new();
        let mut random = 12345_u64;
        for _ in 0..20_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let roll = usize::try_from(random >> 33).unwrap();
            if roll % 5 < 2 && !held.is_empty() {
                let (slot, who) = held.swap_remove(roll % held.len());
                slots.give_back(slot, &names[who]);
                continue;
            }
            // Mostly the first one.
            let who = (roll % 7) / 3;
            let holds = held.iter().filter(|(_, whose)| *whose == who).count();
            match slots.take(&names[who]) {
                Ok(slot) => held.push((slot, who)),
                Err(_) => assert!(holds >= 3, "{who} was refused with {holds}"),
            }
        }
    }
}
