//! This process's own cgroup, and what identifies one.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use super::Error;

/// Inode of the initial cgroup namespace (include/linux/proc_ns.h, PROC_CGROUP_INIT_INO).
const INITIAL_NAMESPACE: u64 = 0xEFFF_FFFB;

/// This process's cgroup, as a path below the mount.
///
/// # Errors
/// If `/proc` can't be read or has no version 2 line.
pub fn own() -> Result<PathBuf, Error> {
    let path = "/proc/self/cgroup";
    let lines = fs::read_to_string(path).map_err(|source| Error::file("read", path, source))?;
    lines
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .map(PathBuf::from)
        .ok_or(Error::NoCgroup2)
}

/// A cgroup's id: the inode of its directory.
///
/// # Errors
/// If the directory can't be read.
pub fn id(directory: &File) -> Result<u64, Error> {
    let meta = directory
        .metadata()
        .map_err(|source| Error::file("stat", "a cgroup directory", source))?;
    Ok(meta.ino())
}

/// Ancestor level of a directory `depth` below the mount; 0 (search) in a cgroup namespace of our own, where
/// the mount's root is not the hierarchy's.
pub(super) fn level_below(parent: &Path) -> u32 {
    let initial = fs::metadata("/proc/self/ns/cgroup").is_ok_and(|meta| meta.ino() == INITIAL_NAMESPACE);
    if !initial {
        return 0;
    }
    let depth = parent
        .components()
        .filter(|part| matches!(part, Component::Normal(_)))
        .count();
    u32::try_from(depth + 1).unwrap_or(0)
}
