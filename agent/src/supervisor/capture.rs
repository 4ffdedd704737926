//! Holding workloads: their cgroups, listeners and kernel plans, and what the kernel reports of them.

mod earlier;
mod enroll;
mod kept;
mod pinned;
mod release;
mod sockets;
mod spaces;
mod wanted;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::ebpf::{
    self, Bell, Direct, Events, LoadOptions, Programs, Reason, Report, Transport, WorkerFds, WorkloadPlan,
};
use crate::enroll::{Mount, Workloads};
use crate::identity::WorkloadName;
use crate::policy::{Policy, Workload};
use crate::systemd::store::Store;

use super::Error;
use super::canary::{self, Cage};
use super::foreign::{Place, Watch};
use super::records::Records;
use super::view::View;

use earlier::Stranger;
use sockets::Sockets;
use spaces::Spaces;

pub(super) use sockets::Offer;
pub(super) use spaces::{Change, Doors};

/// Handshakes older than this were never completed.
const STALE: Duration = Duration::from_secs(60);
/// How often the sums of what the kernel did not report one by one are taken.
const SUMS: Duration = Duration::from_secs(1);
/// Kernel reports taken at once.
const REPORTS: usize = 4096;

/// The workloads of this host, held.
pub(super) struct Capture {
    programs: Programs,
    store: Store,
    /// Device and inode of the pins' directory that the service manager keeps.
    kept_pins: Option<(u64, u64)>,
    events: Option<Events>,
    workloads: Workloads,
    held: BTreeMap<WorkloadName, Held>,
    strangers: Vec<Stranger>,
    /// No number is given again: sockets carry them.
    highest: u32,
    summed: Instant,
    foreign: Watch,
    spaces: Spaces,
    /// Cookie of the agent's own network namespace.
    home: u64,
    intact: bool,
    repairs: u64,
    view: View,
}

struct Held {
    number: u32,
    id: u64,
    cgroup: String,
    sockets: Sockets,
}

impl Capture {
    /// Loads the kernel programs, or takes over those of the last run with the workloads that it held. Nothing new is
    /// held yet.
    pub(super) fn start(config: &Config, mut store: Store, records: &mut Records) -> Result<Self, Error> {
        let moved = pinned::take_up(config, &mut store, records)?;
        let workloads = Workloads::open(Mount::find()?, &config.cgroup_parent, &config.runtime_dir)?;
        let parent = workloads.parent().trim_start_matches('/');
        let mount = workloads.mount().path();
        let mut programs = Programs::load(&LoadOptions::new(&config.bpffs_dir, mount, parent))?;
        let events = programs.events();
        let foreign =
            Watch::start(programs.marks()?).map_err(super::io("start a thread for", Path::new("sockets")))?;
        let home = ebpf::netns::own_cookie()
            .map_err(super::io("read", Path::new("the network namespace's cookie")))?;
        let mut capture = Self {
            foreign,
            spaces: Spaces::new(),
            home,
            programs,
            store,
            kept_pins: None,
            events,
            workloads,
            held: BTreeMap::new(),
            strangers: Vec::new(),
            highest: 0,
            summed: Instant::now(),
            intact: true,
            repairs: u64::from(moved),
            view: View::new(config),
        };
        capture.keep_pins();
        capture.take_up()?;
        Ok(capture)
    }

    /// What the service manager keeps from run to run.
    pub(super) fn store(&mut self) -> &mut Store {
        &mut self.store
    }

    pub(super) fn mount(&self) -> &Path {
        self.workloads.mount().path()
    }

    pub(super) fn parent(&self) -> &str {
        self.workloads.parent()
    }

    /// Name, cgroup path and number of each.
    pub(super) fn workloads(&self) -> impl Iterator<Item = (&WorkloadName, &str, u32)> {
        self.held
            .iter()
            .map(|(name, held)| (name, held.cgroup.as_str(), held.number))
    }

    /// The workload that the kernel knows by this number.
    pub(super) fn name_of(&self, number: u32) -> Option<&WorkloadName> {
        self.held
            .iter()
            .find(|(_, held)| held.number == number)
            .map(|(name, _)| name)
    }

    /// Holds every workload of the policy; gives the names of those that are new. One that is no longer in the policy
    /// stays held with nothing allowed: letting go is `release`'s business, not a reload's.
    pub(super) fn arm_all(&mut self, policy: &Policy) -> Result<Vec<WorkloadName>, Error> {
        let mut fresh = Vec::new();
        let new = policy
            .workloads()
            .filter(|one| !self.held.contains_key(one.name()));
        // Room is made before it is taken.
        let count = self.held.len() + new.count();
        self.share_spaces(count);
        for workload in policy.workloads() {
            if !self.held.contains_key(workload.name()) {
                let held = self.hold(workload.name())?;
                fresh.push(workload.name().clone());
                self.held.insert(workload.name().clone(), held);
            }
        }
        // What loses its rights comes first: nothing that fails later leaves them.
        let mut planned: Vec<_> = self
            .held
            .iter()
            .map(|(name, held)| (held, policy.workload(name)))
            .collect();
        planned.sort_by_key(|(_, workload)| workload.is_some());
        let mut places = Vec::new();
        for (held, workload) in planned {
            let plan = self.plan(held, workload);
            self.programs.arm(&plan)?;
            places.push(Place {
                number: held.number,
                id: held.id,
                directory: plan.cgroup,
                listen: plan.listen_ports,
                spaces: spaces::share(count),
            });
        }
        self.foreign.hold(places);
        Ok(fresh)
    }

    fn hold(&mut self, name: &WorkloadName) -> Result<Held, Error> {
        let (cgroup, id) = {
            let workload = self.workloads.add(name)?;
            (workload.path().to_owned(), workload.id())
        };
        let number = self.number(id);
        let mut spaces = self.take_back(name, number)?;
        spaces.push(self.home);
        // Those of an earlier run in other namespaces lead nowhere.
        self.programs.unmark_all_but(number, &spaces)?;
        let sockets = self.sockets(name, number)?;
        Ok(Held {
            number,
            id,
            cgroup,
            sockets,
        })
    }

    /// The number that sockets of an earlier run carry, or one that nobody has.
    fn number(&mut self, id: u64) -> u32 {
        let armed = self.programs.armed();
        if let Some((_, number)) = armed.iter().find(|(armed, _)| *armed == id) {
            return *number;
        }
        let taken = armed
            .iter()
            .map(|(_, number)| *number)
            .chain(self.held.values().map(|held| held.number));
        self.highest = taken.max().unwrap_or(0).max(self.highest) + 1;
        self.highest
    }

    fn plan(&self, held: &Held, workload: Option<&Workload>) -> WorkloadPlan {
        let direct = |direct: &crate::policy::Direct| Direct {
            net: direct.cidr,
            port: Some(direct.port),
            transport: Transport::Tcp,
        };
        WorkloadPlan {
            number: held.number,
            cgroup: self.mount().join(held.cgroup.trim_start_matches('/')),
            dial_ports: workload.map(Workload::kernel_ports).unwrap_or_default(),
            direct: workload
                .map(|one| one.direct().iter().map(direct).collect())
                .unwrap_or_default(),
            listen_ports: workload.map(|one| one.listen().to_vec()).unwrap_or_default(),
        }
    }

    /// Writes all that the kernel knows of the workloads anew: somebody may have changed it.
    pub(super) fn mend(&mut self, policy: &Policy) -> Result<(), Error> {
        self.arm_all(policy)?;
        for held in self.held.values() {
            held.sockets.mark(&mut self.programs, held.number)?;
        }
        self.mark_spaces()
    }

    /// Where workloads are served.
    pub(super) fn cages(&self) -> Vec<Cage> {
        let mut all = Vec::new();
        for (name, held) in &self.held {
            let cage = |space| Cage {
                workload: name.clone(),
                number: held.number,
                space,
            };
            all.push(cage(None));
            all.extend(self.served_in(held.number).map(Some).map(cage));
        }
        all
    }

    /// The file by which a process enters a cgroup of its own in this workload.
    pub(super) fn cage(&mut self, workload: &WorkloadName) -> Result<std::fs::File, String> {
        self.workloads
            .room(workload, canary::ROOM)
            .map_err(|error| error.to_string())
    }

    /// Says to systemd's assertions that units may start.
    pub(super) fn mark_armed(&self) -> Result<(), Error> {
        for name in self.held.keys() {
            self.workloads.arm(name)?;
        }
        Ok(())
    }

    /// All listeners, duplicated for a worker; or those of the workloads named.
    pub(super) fn listeners(&self, only: Option<&[WorkloadName]>) -> Result<Vec<Offer>, Error> {
        let mut all = Vec::new();
        for (name, held) in &self.held {
            if only.is_some_and(|only| !only.contains(name)) {
                continue;
            }
            all.extend(held.sockets.offers(name, held.number, self.home)?);
            all.extend(self.listeners_elsewhere(held.number)?);
        }
        Ok(all)
    }

    pub(super) fn worker_fds(&self) -> Result<WorkerFds, Error> {
        Ok(self.programs.worker_fds()?)
    }

    /// What the kernel refused, or let pass by a direct rule, and which sockets were cut off, since the last look; once a
    /// second, or if this is the `last` look, also the sums of what the kernel did not report one by one.
    pub(super) fn reports(&mut self, last: bool) -> Vec<Report> {
        let mut reports = Vec::new();
        if let Some(events) = &mut self.events {
            events.drain(REPORTS, |report| reports.push(report));
        }
        self.serve_refused(&reports);
        reports.extend(self.foreign.reports());
        if last || self.summed.elapsed() >= SUMS {
            self.summed = Instant::now();
            if let Err(error) = self.programs.take_suppressed(&mut reports) {
                tracing::warn!(%error, "what the kernel counted can't be read now; it is recorded later");
            }
        }
        reports
    }

    /// Rings when there is something for [`Capture::reports`] that does not wait.
    pub(super) fn bell(&self) -> std::io::Result<Bell> {
        self.events.as_ref().map_or(Ok(Bell::default()), Events::bell)
    }

    /// What the kernel programs said since the last look of faults that have no event.
    pub(super) fn faults(&mut self) -> Vec<String> {
        self.programs.faults()
    }

    /// Sees that the perimeter stands, and clears away what ended commands and handshakes left.
    pub(super) fn look_after(&mut self, records: &mut Records) {
        self.guard_perimeter(records);
        for uncut in self.foreign.uncut() {
            let workload = self.name_of(uncut.holder.origin.workload()).cloned();
            records.uncut_socket(workload, &uncut);
        }
        if let Err(error) = self.programs.keep_addresses() {
            tracing::warn!(%error, "this host's addresses can't be kept up with: sockets bound to new ones are refused");
        }
        if let Err(error) = self.programs.sweep_flows(STALE) {
            tracing::warn!(%error, "stale handshakes can't be cleared away");
        }
        for name in self.held.keys() {
            if let Err(error) = self.workloads.sweep(name) {
                tracing::warn!(%error, workload = %name, "cgroups of ended commands can't be cleared away");
            }
        }
    }

    /// Puts back what was detached or unpinned. What can't be put back is tried again at each look; nobody enters a
    /// workload until it is. Says whether all is in place.
    pub(super) fn guard_perimeter(&mut self, records: &mut Records) -> bool {
        let mut what: BTreeSet<&str> = self.programs.broken().collect();
        let repaired = if what.is_empty() {
            Ok(())
        } else {
            self.programs.repair()
        };
        what.extend(self.programs.take_remade());
        if what.is_empty() {
            self.set_intact(true);
            return true;
        }
        // Also if something else could not be done: they may have been moved.
        self.keep_pins();
        let what = what.into_iter().collect::<Vec<_>>().join(", ");
        match repaired {
            Ok(()) => {
                self.repairs += 1;
                tracing::error!(
                    what,
                    "kernel programs or maps were detached or unpinned; they are put back"
                );
                records.perimeter_broken(&format!("detached or unpinned, and put back: {what}"));
                self.set_intact(true);
            }
            Err(error) => {
                if self.intact {
                    tracing::error!(
                        what,
                        "kernel programs or maps were detached or unpinned and can't be put back, so workloads may go out unchecked: {error}"
                    );
                    records.perimeter_broken(&format!(
                        "detached or unpinned: {what}; can't be put back: {error}"
                    ));
                }
                self.set_intact(false);
            }
        }
        self.intact
    }

    /// Units may start only behind a perimeter.
    fn set_intact(&mut self, intact: bool) {
        if self.intact == intact {
            return;
        }
        self.intact = intact;
        for name in self.held.keys() {
            let marked = if intact {
                self.workloads.arm(name)
            } else {
                self.workloads.disarm(name)
            };
            if let Err(error) = marked {
                tracing::error!(%error, workload = %name, "can't say whether units may start");
            }
        }
    }

    pub(super) fn is_intact(&self) -> bool {
        self.intact
    }

    /// How often the perimeter was put back.
    pub(super) fn repairs(&self) -> u64 {
        self.repairs
    }

    /// How often the kernel side did what.
    pub(super) fn counters(&self) -> BTreeMap<String, u64> {
        match self.programs.counters() {
            Ok(counters) => counters
                .into_iter()
                .map(|(reason, count)| {
                    let by_agent = reason == Reason::HandedSocket;
                    let count = if by_agent { self.foreign.count() } else { count };
                    (reason.as_str().to_owned(), count)
                })
                .collect(),
            Err(error) => {
                tracing::warn!(%error, "the kernel's counters can't be read");
                BTreeMap::new()
            }
        }
    }
}

/// A workload takes a descriptor for each of its links and sockets; the soft limit is for programs that use select(2).
pub(super) fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open descriptors stays as it is");
    }
}
