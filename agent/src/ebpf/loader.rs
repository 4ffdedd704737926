//! Load, attach and pin, in that order; taking over what an earlier run left.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::maps::{Array, MapData, PerCpuArray, RingBuf};
use aya::programs::Program;
use aya::{Ebpf, EbpfLoader};
use callgate_common::config::{PIDS_ABSENT, PIDS_INITIAL, PIDS_TRANSLATED};
use callgate_common::names::{
    ABI_SLOT, CONFIG, COUNTERS, EVENTS, FLOWS, LIVENESS, MAPS, MAX_FLOWS, ORIGINS, SOCKETS, WORKLOADS,
};
use callgate_common::{FlowKey, KernelConfig, Origin, Reason, TaskOffsets, abi};

use super::faults::{self, Faults};
use super::features::{self, Feature};
use super::pins::{AGENT, GUARD, Pins, WORKLOAD};
use super::workload::{self, WorkloadPlan, absent_ok, table};
use super::{Error, Events, Marks, addresses, btf, cgroup, earlier, object};

/// Inode of the initial pid namespace (include/linux/proc_ns.h, PROC_PID_INIT_INO).
const INITIAL_PIDS: u64 = 0xEFFF_FFFC;

/// Stands for no workload.
const UNATTRIBUTED: u32 = 0;

/// Where and how to load.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Pins go here; a BPF file system is mounted on it if it does not lie on one.
    pub bpffs_dir: PathBuf,
    /// Where cgroup v2 is mounted.
    pub mount: PathBuf,
    /// The workloads' parent, as a path below the mount. Must exist.
    pub parent: PathBuf,
    /// Where callers are checked for sockets made elsewhere: `parent` or one above it. Programs follow the cgroup
    /// that made a socket, so one made outside of this and handed in is seen by no program at all.
    pub guard: PathBuf,
    /// The cgroup that the listeners are made in, below the mount; `None` is this process's own.
    pub agent: Option<PathBuf>,
    /// Silence after which connects are refused.
    pub liveness_max: Duration,
    /// Handshakes under way at once.
    pub max_flows: u32,
    /// The kernel's type information; what it does not tell of the caller is absent from origins.
    pub type_info: PathBuf,
    /// What the programs say in words, at this level or a more severe one: what nobody would see costs nothing.
    pub level: Option<tracing::Level>,
    /// Features to treat as missing: for tests of what the operator is told.
    pub missing: Vec<Feature>,
    /// Another build of the kernel programs than the embedded one: for tests of what the verifier says to it.
    pub object: Option<Vec<u8>>,
}

impl LoadOptions {
    /// The product's settings for a pin directory, the cgroup v2 mount and a parent below it.
    #[must_use]
    pub fn new(bpffs_dir: impl Into<PathBuf>, mount: impl Into<PathBuf>, parent: impl Into<PathBuf>) -> Self {
        let parent = parent.into();
        Self {
            bpffs_dir: bpffs_dir.into(),
            mount: mount.into(),
            guard: parent.clone(),
            parent,
            agent: None,
            liveness_max: Duration::from_secs(2),
            max_flows: u32::try_from(MAX_FLOWS).unwrap_or(u32::MAX),
            type_info: features::TYPE_INFO.into(),
            level: tracing::level_filters::LevelFilter::current().into_level(),
            missing: Vec::new(),
            object: None,
        }
    }
}

/// The descriptors that a worker needs.
#[derive(Debug)]
pub struct WorkerFds {
    /// For [`super::Origins::new`].
    pub origins: OwnedFd,
    /// For [`super::Liveness::new`].
    pub liveness: OwnedFd,
}

/// The loaded programs. Dropping it detaches nothing: the pins hold.
pub struct Programs {
    pub(super) ebpf: Ebpf,
    pub(super) pins: Pins,
    /// The root of the cgroup hierarchy.
    pub(super) mount: File,
    pub(super) guard: u64,
    pub(super) agent: u64,
    /// The cgroups that links were made on in this run.
    pub(super) directories: BTreeMap<u64, File>,
    events: Option<Events>,
    faults: Faults,
    armed: Vec<(u64, u32)>,
    max_flows: u32,
}

impl Programs {
    /// Loads the programs, takes over pinned maps and links of an earlier run, and attaches the guard and the
    /// server side. Needs root (CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON, and CAP_SYS_ADMIN to mount).
    ///
    /// # Errors
    /// Says which feature, file, program or version stands in the way. Nothing is attached then, but links of
    /// an earlier run stay.
    pub fn load(options: &LoadOptions) -> Result<Self, Error> {
        let object = match &options.object {
            Some(object) => object,
            None => object::bytes()?,
        };
        check_features(options)?;
        let mount = &options.mount;
        let agent = options.agent.clone().map_or_else(cgroup::own, Ok)?;
        if agent.starts_with(&options.parent) && agent != options.parent {
            return Err(Error::OwnWorkload { path: agent });
        }
        let mut pins = Pins::open(&options.bpffs_dir)?;
        check_version(&pins.maps())?;
        let mount_dir = open_cgroup(mount)?.1;
        let level = earlier::workload_level(options, &mount_dir, &pins);
        let mut ebpf = load_object(object, options, &pins, level)?;
        write_version(&mut ebpf)?;
        addresses::write(&mut ebpf)?;
        workload::add_budgets(&mut ebpf, UNATTRIBUTED)?;
        pins.hold_maps()?;
        pins.take_over(|name| program(&ebpf, name))?;
        let (guard, guard_dir) = open_cgroup(&mount.join(&options.guard))?;
        let (agent, agent_dir) = open_cgroup(&mount.join(&agent))?;
        pins.attach((guard, guard_dir.as_fd()), GUARD, |name| program(&ebpf, name))?;
        pins.attach((agent, agent_dir.as_fd()), AGENT, |name| program(&ebpf, name))?;
        let armed = workload::armed(&mut ebpf)?;
        for (cgroup, number) in &armed {
            pins.hold_links(*cgroup, WORKLOAD);
            workload::add_counts(&mut ebpf, *number)?;
        }
        let known = armed.iter().map(|(cgroup, _)| *cgroup).chain([guard, agent]);
        pins.hold_former(&known.collect())?;
        workload::share_out(&mut ebpf, &numbers(&armed), options.max_flows)?;
        let events = Some(take_events(&mut ebpf)?);
        let faults = Faults::of(&mut ebpf)?;
        Ok(Self {
            ebpf,
            pins,
            mount: mount_dir,
            guard,
            agent,
            directories: BTreeMap::from([(guard, guard_dir), (agent, agent_dir)]),
            events,
            faults,
            armed,
            max_flows: options.max_flows,
        })
    }

    /// Workloads that are armed, as cgroup id and number: at first those of an earlier run, whose numbers must
    /// be used again, since sockets carry them.
    #[must_use]
    pub fn armed(&self) -> &[(u64, u32)] {
        &self.armed
    }

    /// Arms a workload, or gives an armed one a new plan. When this returns, everything in the cgroup is held.
    ///
    /// # Errors
    /// If the cgroup can't be opened, a map is full or a link can't be made; the workload then is held as far
    /// as links were made, and nothing of it passes.
    pub fn arm(&mut self, plan: &WorkloadPlan) -> Result<(), Error> {
        let (id, dir) = open_cgroup(&plan.cgroup)?;
        workload::write(&mut self.ebpf, plan)?;
        self.armed.retain(|(armed, _)| *armed != id);
        self.armed.push((id, plan.number));
        workload::share_out(&mut self.ebpf, &numbers(&self.armed), self.max_flows)?;
        table::<u64, u32>(&mut self.ebpf, WORKLOADS)?
            .insert(id, plan.number, 0)
            .map_err(|source| Error::map(WORKLOADS, source))?;
        self.pins
            .attach((id, dir.as_fd()), WORKLOAD, |name| program(&self.ebpf, name))?;
        self.directories.insert(id, dir);
        Ok(())
    }

    /// Takes every right from a workload, and its listeners: it stays held, and nothing of it passes.
    ///
    /// # Errors
    /// If entries can't be removed.
    pub fn withdraw(&mut self, number: u32) -> Result<(), Error> {
        workload::withdraw(&mut self.ebpf, number)
    }

    /// Lets go of a workload: everything in its cgroup goes out as it likes from now on.
    ///
    /// # Errors
    /// If pins or entries can't be removed.
    pub fn disarm(&mut self, number: u32) -> Result<(), Error> {
        let ids: Vec<u64> = self
            .armed
            .iter()
            .filter(|(_, armed)| *armed == number)
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            self.pins.detach(id)?;
            self.directories.remove(&id);
            absent_ok(
                WORKLOADS,
                table::<u64, u32>(&mut self.ebpf, WORKLOADS)?.remove(&id),
            )?;
        }
        workload::clear(&mut self.ebpf, number)?;
        self.armed.retain(|(_, armed)| *armed != number);
        Ok(())
    }

    /// The descriptors for a worker.
    ///
    /// # Errors
    /// If descriptors run out.
    pub fn worker_fds(&self) -> Result<WorkerFds, Error> {
        Ok(WorkerFds {
            origins: self.pins.map(ORIGINS)?,
            liveness: self.pins.map(LIVENESS)?,
        })
    }

    /// The marks on sockets, to tell those that were made elsewhere.
    ///
    /// # Errors
    /// If descriptors run out.
    pub fn marks(&self) -> Result<Marks, Error> {
        Marks::new(self.pins.map(SOCKETS)?)
    }

    /// The event stream; `None` after the first call.
    pub fn events(&mut self) -> Option<Events> {
        self.events.take()
    }

    /// What the programs said since the last look of faults that have no event, a line each.
    pub fn faults(&mut self) -> Vec<String> {
        self.faults.take()
    }

    /// How often each reason came up since the pins were made, over all CPUs.
    ///
    /// # Errors
    /// If the map can't be read.
    pub fn counters(&self) -> Result<Vec<(Reason, u64)>, Error> {
        let map = self.ebpf.map(COUNTERS).ok_or(Error::NoSuch { name: COUNTERS })?;
        let counters: PerCpuArray<_, u64> = map.try_into().map_err(|source| Error::map(COUNTERS, source))?;
        Reason::ALL
            .iter()
            .map(|reason| {
                let slots = counters
                    .get(&(*reason as u32), 0)
                    .map_err(|source| Error::map(COUNTERS, source))?;
                Ok((*reason, slots.iter().sum()))
            })
            .collect()
    }

    /// Forgets handshakes that were never completed at the listener's end (client reset, listener's queue
    /// full) and are older than `age`; says how many. To be called every few seconds.
    ///
    /// # Errors
    /// If the clock or the map can't be read.
    pub fn sweep_flows(&mut self, age: Duration) -> Result<usize, Error> {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
            .map_err(|errno| Error::file("read", "CLOCK_BOOTTIME", errno.into()))?;
        let oldest = Duration::from(now).saturating_sub(age).as_nanos();
        let mut flows = table::<FlowKey, Origin>(&mut self.ebpf, FLOWS)?;
        // Entries come and go while this walks: one that is skipped is met at the next sweep.
        let stale: Vec<(FlowKey, u32)> = flows
            .iter()
            .filter_map(Result::ok)
            .filter(|(_, origin)| u128::from(origin.stamp()) < oldest)
            .map(|(key, origin)| (key, origin.workload()))
            .collect();
        let mut swept = BTreeMap::<u32, u64>::new();
        for (key, number) in &stale {
            match flows.remove(key) {
                Ok(()) => *swept.entry(*number).or_default() += 1,
                // The listener's end was quicker, and has counted it.
                absent => absent_ok(FLOWS, absent)?,
            }
        }
        for (number, count) in swept {
            workload::count_swept(&mut self.ebpf, number, count)?;
        }
        Ok(stale.len())
    }
}

fn check_features(options: &LoadOptions) -> Result<(), Error> {
    let missing = Feature::ALL
        .iter()
        .find(|feature| options.missing.contains(feature) || !feature.is_present());
    missing.map_or(Ok(()), |feature| Err(Error::Missing { feature: *feature }))
}

/// Maps of another version must not even be opened, by the loader or by who looks at them.
pub(super) fn check_version(maps: &Path) -> Result<(), Error> {
    let path = maps.join(LIVENESS);
    let pinned = fs::read_dir(maps).is_ok_and(|mut entries| entries.next().is_some());
    if !pinned {
        return Ok(());
    }
    let found = MapData::from_pin(&path)
        .and_then(aya::maps::Map::from_map_data)
        .and_then(Array::<_, u64>::try_from)
        .and_then(|map| map.get(&ABI_SLOT, 0))
        .unwrap_or(0);
    if found == u64::from(abi::VERSION) {
        return Ok(());
    }
    Err(Error::Version {
        path: maps.to_owned(),
        found,
        ours: abi::VERSION,
    })
}

fn write_version(ebpf: &mut Ebpf) -> Result<(), Error> {
    let map = ebpf.map_mut(LIVENESS).ok_or(Error::NoSuch { name: LIVENESS })?;
    let mut map: Array<_, u64> = map.try_into().map_err(|source| Error::map(LIVENESS, source))?;
    map.set(ABI_SLOT, u64::from(abi::VERSION), 0)
        .map_err(|source| Error::map(LIVENESS, source))
}

fn load_object(
    object: &[u8],
    options: &LoadOptions,
    pins: &Pins,
    workload_level: u32,
) -> Result<Ebpf, Error> {
    let config = kernel_config(options, workload_level);
    let level = faults::number(options.level);
    let mut loader = EbpfLoader::new();
    loader
        .override_global(CONFIG, &config, true)
        .override_global(faults::LEVEL, &level, true)
        .map_max_entries(FLOWS, options.max_flows);
    for name in MAPS {
        loader.map_pin_path(name, pins.maps().join(name));
    }
    let mut ebpf = loader.load(object).map_err(|source| Error::Load {
        source: Box::new(source),
    })?;
    for entry in WORKLOAD.iter().chain(GUARD).chain(AGENT) {
        let name = entry.program;
        let program = ebpf.program_mut(name).ok_or(Error::NoSuch { name })?;
        load_program(program).map_err(|source| Error::Program {
            program: name,
            source: Box::new(source),
        })?;
    }
    Ok(ebpf)
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the object holds these five kinds; any other is refused"
)]
fn load_program(program: &mut Program) -> Result<(), aya::programs::ProgramError> {
    match program {
        Program::CgroupSkb(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSockopt(program) => program.load(),
        Program::SockOps(program) => program.load(),
        _ => Err(aya::programs::ProgramError::UnexpectedProgramType),
    }
}

fn kernel_config(options: &LoadOptions, workload_level: u32) -> KernelConfig {
    let pidns = fs::metadata("/proc/self/ns/pid")
        .map(|meta| (meta.dev(), meta.ino()))
        .unwrap_or_default();
    let pids = match pidns.1 {
        INITIAL_PIDS => PIDS_INITIAL,
        0 => PIDS_ABSENT,
        _ if features::can_translate_pids() => PIDS_TRANSLATED,
        _ => PIDS_ABSENT,
    };
    let offsets = fs::read(&options.type_info).map_or(TaskOffsets::NONE, |btf| btf::task_offsets(&btf));
    KernelConfig {
        pidns_dev: pidns.0,
        pidns_ino: pidns.1,
        liveness_max_ns: u64::try_from(options.liveness_max.as_nanos()).unwrap_or(u64::MAX),
        workload_level,
        pids,
        offsets,
    }
}

pub(super) fn program<'a>(ebpf: &'a Ebpf, name: &'static str) -> Result<BorrowedFd<'a>, Error> {
    let program = ebpf.program(name).ok_or(Error::NoSuch { name })?;
    let fd = program.fd().map_err(|source| Error::Program {
        program: name,
        source: Box::new(source),
    })?;
    Ok(fd.as_fd())
}

fn numbers(armed: &[(u64, u32)]) -> Vec<u32> {
    armed.iter().map(|(_, number)| *number).collect()
}

fn open_cgroup(path: &Path) -> Result<(u64, File), Error> {
    let dir = File::open(path).map_err(|source| Error::file("open the cgroup", path, source))?;
    Ok((cgroup::id(&dir)?, dir))
}

fn take_events(ebpf: &mut Ebpf) -> Result<Events, Error> {
    let map = ebpf.take_map(EVENTS).ok_or(Error::NoSuch { name: EVENTS })?;
    RingBuf::try_from(map)
        .map(Events::new)
        .map_err(|source| Error::map(EVENTS, source))
}
