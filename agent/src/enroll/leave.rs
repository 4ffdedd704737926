//! Taking the workloads' cgroups away, while no agent runs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Error, Mount, Released, io_error, normal_parent, remove_if_empty};
use crate::identity::WorkloadName;
use crate::identity::unit::EXEC_PREFIX;

/// The workloads below `parent` in which processes run, those of cgroups further below included, with their cgroups'
/// directories.
///
/// # Errors
/// If `parent` is no path below the mount, or the system refuses.
pub fn occupied(mount: &Mount, parent: &str) -> Result<Vec<(WorkloadName, PathBuf)>, Error> {
    let mut occupied = Vec::new();
    for (name, directory) in workloads(mount, parent)? {
        if is_occupied(&directory)? {
            occupied.push((name, directory));
        }
    }
    Ok(occupied)
}

/// The kernel's own word: 1 if there is a process anywhere below. In a cgroup that is gone there is none.
pub(super) fn is_occupied(directory: &Path) -> Result<bool, Error> {
    let events = directory.join("cgroup.events");
    match fs::read_to_string(&events) {
        Ok(text) => Ok(text.lines().any(|line| line == "populated 1")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io_error("read", &events)(error)),
    }
}

/// Removes the cgroups of all workloads below `parent` that no process is left in, and `parent` if none is left; gives
/// those that stay.
///
/// # Errors
/// If `parent` is no path below the mount, or the system refuses.
pub fn remove_all(mount: &Mount, parent: &str) -> Result<Vec<WorkloadName>, Error> {
    let mut busy = Vec::new();
    for (name, directory) in workloads(mount, parent)? {
        for child in directories(&directory)? {
            let name = child.file_name().and_then(|name| name.to_str());
            // systemd keeps one for a socket unit as long as that listens; no process is in there.
            let is_idle = |name: &str| name.starts_with(EXEC_PREFIX) || name.ends_with(".socket");
            if name.is_some_and(is_idle) {
                remove_if_empty(&child)?;
            }
        }
        if remove_if_empty(&directory)? == Released::Busy {
            busy.push(name);
        }
    }
    remove_if_empty(&mount.file(&normal_parent(parent)?))?;
    Ok(busy)
}

fn workloads(mount: &Mount, parent: &str) -> Result<Vec<(WorkloadName, PathBuf)>, Error> {
    let named = |path: PathBuf| Some((WorkloadName::of_slice(path.file_name()?.to_str()?)?, path));
    let all = directories(&mount.file(&normal_parent(parent)?))?;
    Ok(all.into_iter().filter_map(named).collect())
}

fn directories(parent: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(parent) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_error("list", parent)(error)),
    };
    let paths = entries.flatten().map(|entry| entry.path());
    Ok(paths.filter(|path| path.is_dir()).collect())
}
