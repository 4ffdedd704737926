//! Whether the programs are still where they were put, and putting them back.
//!
//! Removing a pin detaches nothing while the agent holds the link; detaching the link itself (BPF_LINK_DETACH) does,
//! until it is noticed. Who may do either could also unload everything at once: this is against mistakes, and so that
//! a breach is short and on record.

use std::collections::BTreeSet;
use std::os::fd::AsFd as _;

use super::loader::program;
use super::pins::{AGENT, Entry, GUARD, WORKLOAD};
use super::{Error, Programs};

impl Programs {
    /// Whether every link is attached and pinned, and every map pinned.
    #[must_use]
    pub fn pins_intact(&self) -> bool {
        self.broken().next().is_none()
    }

    /// Names of the programs that are detached or not pinned any more, and of the maps that are not pinned; `bpffs` if their
    /// file system is not the host's any more.
    pub fn broken(&self) -> impl Iterator<Item = &'static str> {
        // Those of an earlier run, and of this run even if no link is left.
        let mut cgroups = self.pins.cgroups();
        cgroups.extend(self.directories.keys());
        let links = cgroups
            .into_iter()
            .flat_map(|cgroup| self.pins.broken(cgroup, self.entries(cgroup)));
        links
            .chain(self.pins.unpinned_former())
            .chain(self.pins.unpinned_maps())
            .chain(self.pins.are_hidden().then_some("bpffs"))
    }

    /// Attaches and pins again what [`Programs::broken`] names; a BPF file system that was unmounted is mounted, or the host's
    /// new one taken.
    ///
    /// # Errors
    /// Says what can't be put back.
    pub fn repair(&mut self) -> Result<(), Error> {
        // Where the agent may mount nothing, this fails for what may be mended by another.
        let made = self.pins.make_directories();
        if self.pins.are_hidden() {
            self.pins.follow_host()?;
            self.pins.make_directories()?;
        } else {
            made?;
        }
        self.pins.pin_maps()?;
        self.pins.pin_former()?;
        let (guard, agent) = (self.guard, self.agent);
        for (cgroup, directory) in &self.directories {
            let entries = entries(*cgroup, guard, agent);
            let of = |name| program(&self.ebpf, name);
            self.pins.attach((*cgroup, directory.as_fd()), entries, of)?;
        }
        Ok(())
    }

    /// Names of programs that were detached and put back unseen by [`Programs::broken`]: since it was asked, or by a
    /// workload's being armed again. Each is told once.
    pub fn take_remade(&mut self) -> BTreeSet<&'static str> {
        self.pins.take_remade()
    }

    fn entries(&self, cgroup: u64) -> &'static [Entry] {
        entries(cgroup, self.guard, self.agent)
    }
}

fn entries(cgroup: u64, guard: u64, agent: u64) -> &'static [Entry] {
    if cgroup == guard {
        GUARD
    } else if cgroup == agent {
        AGENT
    } else {
        WORKLOAD
    }
}
