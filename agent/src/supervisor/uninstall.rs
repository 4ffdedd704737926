//! Letting go of every workload, while no agent runs: what an uninstalled agent must not leave behind.

use std::fs::{File, remove_dir, remove_dir_all};
use std::io::ErrorKind;

use nix::fcntl::Flock;

use super::{Error, ground, io, left};
use crate::config::Config;
use crate::ebpf;
use crate::enroll::{self, Mount};
use crate::identity::WorkloadName;

/// What becomes of workloads in which processes run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Running {
    /// Nothing is let go while there are any.
    Refuse,
    /// They run on, with the network of any other process. Their cgroups stay until they end.
    LetGo,
}

/// Removes the programs, the marks that units wait for, and the cgroups. Gives the workloads in which processes run on.
/// Policy, secrets, CA and records stay. Done again it finishes what was interrupted.
///
/// # Errors
/// If the agent runs, rights are missing, processes run and shall not be let go, or the system refuses.
pub fn release_all(config: &Config, running: Running) -> Result<Vec<WorkloadName>, Error> {
    if never_ran(config) {
        return Ok(Vec::new());
    }
    if let Some(missing) = ground::missing() {
        return Err(Error::Rights { missing });
    }
    let _alone = alone(config)?;
    let mount = Mount::find()?;
    let parent = &config.cgroup_parent;
    let occupied = enroll::occupied(&mount, parent)?;
    if running == Running::Refuse && !occupied.is_empty() {
        let workloads = occupied.into_iter().map(|(name, _)| name).collect();
        return Err(Error::Occupied { workloads });
    }
    // Calls that a stopped agent's worker still ends are let go of too.
    left::tables(&config.state_dir)
        .and_then(|tables| left::end_all(&tables))
        .map_err(io("end the workers of", &config.state_dir))?;
    // No unit may start as managed once its programs are gone.
    let armed = config.runtime_dir.join("armed");
    match remove_dir_all(&armed) {
        Err(source) if source.kind() != ErrorKind::NotFound => return Err(io("remove", &armed)(source)),
        _ => {}
    }
    ebpf::remove_pins(&config.bpffs_dir)?;
    // Where they were before `bpffs_dir` was set; one that holds anything is another agent's, and what is mounted on the
    // operator's.
    let usual = Config::default().bpffs_dir;
    let stays = [
        ErrorKind::NotFound,
        ErrorKind::DirectoryNotEmpty,
        ErrorKind::ResourceBusy,
    ];
    match remove_dir(&usual) {
        Err(source) if !stays.contains(&source.kind()) => return Err(io("remove", &usual)(source)),
        Ok(()) | Err(_) => {}
    }
    Ok(enroll::remove_all(&mount, parent)?)
}

/// Where no agent has ever run there is nothing to let go, and maybe neither rights nor cgroups: an image that is built.
fn never_ran(config: &Config) -> bool {
    let made = [&config.runtime_dir, &config.state_dir, &config.bpffs_dir];
    !made.into_iter().any(|dir| dir.exists())
}

/// The locks that a running agent holds. Where it has never run there are none.
fn alone(config: &Config) -> Result<Vec<Flock<File>>, Error> {
    let dirs = [&config.runtime_dir, &config.state_dir];
    dirs.into_iter()
        .filter(|dir| dir.exists())
        .map(|dir| ground::lock(dir))
        .collect()
}
