//! Where cgroups are on this host: the version 2 mount, wherever it is, and this process's own group.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use super::Error;

/// Inode of the initial cgroup namespace (include/linux/proc_ns.h, PROC_CGROUP_INIT_INO).
const INITIAL_NAMESPACE: u64 = 0xEFFF_FFFB;

/// The mount point of the version 2 hierarchy. On a hybrid host that is not `/sys/fs/cgroup`.
///
/// # Errors
/// If `/proc` can't be read or nothing of type cgroup2 is mounted.
pub fn mount_point() -> Result<PathBuf, Error> {
    let path = "/proc/self/mountinfo";
    let table = fs::read_to_string(path).map_err(|source| Error::file("read", path, source))?;
    find_mount(&table).ok_or(Error::NoCgroup2)
}

fn find_mount(table: &str) -> Option<PathBuf> {
    table.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut fields = left.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        (right.starts_with("cgroup2 ") && root == "/").then(|| PathBuf::from(unescape(point)))
    })
}

/// mountinfo writes space, tab, newline and backslash as `\ooo` (fs/proc_namespace.c).
fn unescape(text: &str) -> String {
    text.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_on_a_hybrid_host_and_with_a_space_in_its_name() {
        let table = "31 1 0:27 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                     41 31 0:38 / /sys/fs/cgroup/uni\\040fied rw,relatime shared:4 - cgroup2 cgroup2 rw\n";
        assert_eq!(find_mount(table), Some(PathBuf::from("/sys/fs/cgroup/uni fied")));
        assert_eq!(
            find_mount("31 1 0:27 / /sys/fs/cgroup rw - cgroup cgroup rw"),
            None
        );
    }
}
