//! The kernel side as seen from here: load, attach, pin, read. Nothing else names aya.
//!
//! [`Programs`] is the supervisor's; [`maps`] is for the worker, which has descriptors and no rights. What the
//! programs do is in `agent-ebpf`, what both sides share in `agent-common`.
//!
//! Links and maps are pinned: when the agent dies, the programs stay and refuse. Only [`Programs::disarm`] and
//! [`remove_pins`] let go.

mod addresses;
mod bpffs;
mod btf;
pub mod cgroup;
mod earlier;
pub mod events;
mod faults;
pub mod features;
pub mod foreign;
mod listeners;
pub mod loader;
pub mod maps;
mod moved;
pub mod netns;
mod object;
pub mod others;
mod perimeter;
mod pins;
mod suppressed;
mod sys;
mod unchanged;
mod verified;
pub mod workload;

use std::io;
use std::path::PathBuf;

pub use bpffs::prepare as prepare_pins;
pub use callgate_common::{Origin, Reason};
pub use earlier::{Pinned, pinned};
pub use events::{Bell, Events, Report};
pub use features::Feature;
pub use foreign::Marks;
pub use loader::{LoadOptions, Programs, WorkerFds};
pub use maps::{Liveness, Origins};
pub use moved::{Moved, move_pins};
pub use netns::Netns;
pub use others::{Other, others};
pub use pins::remove_pins;
pub use workload::{Direct, Transport, WorkloadPlan};

/// What can go wrong between the agent and the kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The build had no BPF linker.
    #[error("built without kernel programs: run `cargo xtask setup`")]
    NoObject,
    /// A hook or helper is missing.
    #[error("this kernel lacks {}, needed {}: {}", feature.name(), feature.why(), feature.fix())]
    Missing {
        /// What.
        feature: Feature,
    },
    /// There is no version 2 cgroup hierarchy.
    #[error(
        "no cgroup v2 hierarchy is mounted: mount one (`mount -t cgroup2 none DIR`) or boot with systemd's unified or hybrid layout"
    )]
    NoCgroup2,
    /// An ordinary file operation failed.
    #[error("can't {action} {path}: {source}")]
    File {
        /// The operation.
        action: &'static str,
        /// Its object.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The object or its maps were refused.
    #[error("can't load the kernel programs: {source}")]
    Load {
        /// aya's word, with the verifier's log.
        source: Box<aya::EbpfError>,
    },
    /// The verifier refused one program.
    #[error("the kernel refused the program {program}: {source}")]
    Program {
        /// Which.
        program: &'static str,
        /// aya's word, with the verifier's log.
        source: Box<aya::programs::ProgramError>,
    },
    /// The object holds no such program or map: agent and object don't belong together.
    #[error("the embedded kernel object has no {name}: build the agent again")]
    NoSuch {
        /// What was looked for.
        name: &'static str,
    },
    /// A map operation failed.
    #[error("kernel map {map}: {source}")]
    Map {
        /// Which.
        map: &'static str,
        /// aya's word.
        source: Box<aya::maps::MapError>,
    },
    /// What the programs say can't be read.
    #[error("can't read what the kernel programs say: {source}")]
    Log {
        /// aya's word.
        source: Box<aya_log::Error>,
    },
    /// A link operation failed.
    #[error("can't {action} the link of {program}: {source}")]
    Link {
        /// The operation.
        action: &'static str,
        /// Which program.
        program: &'static str,
        /// The system's word.
        source: io::Error,
    },
    /// Pins of another version lie there.
    #[error("{} holds pins of version {found}, this agent has version {ours}: stop the workloads and let go of them with `callgate release --all`, or run the agent that made them; until then nothing of a workload goes out", path.display())]
    Version {
        /// The pin directory.
        path: PathBuf,
        /// What it holds.
        found: u64,
        /// What this agent makes.
        ours: u32,
    },
    /// The agent's own mount namespace keeps a BPF file system that the host has no more.
    #[error("the BPF file system of {} was unmounted on the host, and the agent as confined by its unit can't mount another: a restart of callgate.service does, and the agent goes on there", path.display())]
    Unmounted {
        /// The pin directory.
        path: PathBuf,
    },
    /// The agent itself would be captured.
    #[error("the agent runs in {}, below its own workloads' parent: start it elsewhere", path.display())]
    OwnWorkload {
        /// The agent's cgroup.
        path: PathBuf,
    },
    /// A socket that can't serve as a listener.
    #[error("can't mark the listener: it is not an INET socket on a loopback address")]
    NotAListener,
}

impl Error {
    fn file(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::File {
            action,
            path: path.into(),
            source,
        }
    }

    fn map(map: &'static str, source: aya::maps::MapError) -> Self {
        Self::Map {
            map,
            source: Box::new(source),
        }
    }
}
