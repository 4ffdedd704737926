//! The processes of a workload, and the sockets that they hold, looked at from outside while they run.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::forked;
use super::process::HeldProcess;

/// Levels below a workload's cgroup that are looked into.
pub const DEEPEST: usize = 32;

/// A process of a workload, held by two handles that are of the same one.
#[derive(Debug)]
pub struct Member {
    process: HeldProcess,
    handle: OwnedFd,
}

impl Member {
    /// Takes hold of the process that has this number now; `None` if there is none, or it is not in `slice` (any more), or
    /// still a copy of the service manager.
    #[must_use]
    pub fn open(pid: u32, slice: &OsStr) -> Option<Self> {
        let handle = pidfd_open(Pid::from_raw(i32::try_from(pid).ok()?)?, PidfdFlags::empty()).ok()?;
        // Held after the handle was made: while descriptors can be had through the handle, both are one process.
        let process = HeldProcess::open(pid).ok()?;
        let is_ours = is_below(&process, slice) && !forked::is_managers_child(&process);
        is_ours.then_some(Self { process, handle })
    }

    /// Its facts.
    #[must_use]
    pub fn process(&self) -> &HeldProcess {
        &self.process
    }

    /// Its descriptors that are sockets, with the sockets' inodes.
    pub fn sockets(&self) -> impl Iterator<Item = (i32, u64)> + use<> {
        sockets(self.process.pid())
    }

    /// A duplicate of one of its descriptors.
    ///
    /// # Errors
    /// `EPERM` without the right to look into it (CAP_SYS_PTRACE), another if it was closed or the process has ended.
    pub fn descriptor(&self, number: i32) -> rustix::io::Result<OwnedFd> {
        pidfd_getfd(&self.handle, number, PidfdGetfdFlags::empty())
    }
}

/// Numbers of all processes in the cgroup of this directory and in those below it.
#[must_use]
pub fn processes(directory: &Path) -> Vec<u32> {
    let mut pids = Vec::new();
    add_processes(directory, DEEPEST, &mut pids);
    pids
}

/// Whether the process is in the workload's slice or below it.
#[must_use]
pub fn is_below(process: &HeldProcess, slice: &OsStr) -> bool {
    let Ok(Some(shown)) = process.cgroup() else {
        return false;
    };
    // By the slice's name, which is one of a kind, whatever root of the hierarchy /proc shows paths from.
    Path::new(&shown)
        .components()
        .any(|part| part.as_os_str() == slice)
}

fn add_processes(directory: &Path, levels: usize, pids: &mut Vec<u32>) {
    let listed = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    pids.extend(
        listed
            .lines()
            .filter_map(|line| line.parse::<u32>().ok())
            .filter(|pid| *pid > 0),
    );
    let Some(levels) = levels.checked_sub(1) else {
        return;
    };
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            add_processes(&entry.path(), levels, pids);
        }
    }
}

fn sockets(pid: u32) -> impl Iterator<Item = (i32, u64)> + use<> {
    let socket = |entry: fs::DirEntry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        let target = fs::read_link(entry.path()).ok()?;
        let inode = target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
        Some((number, inode.parse().ok()?))
    };
    let entries = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten();
    entries.filter_map(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_sockets_are_found_by_their_inodes() {
        use std::os::fd::AsRawFd as _;
        use std::os::unix::fs::MetadataExt as _;
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let inode = fs::metadata(format!("/proc/self/fd/{}", one.as_raw_fd()))
            .unwrap()
            .ino();
        assert!(sockets(std::process::id()).any(|found| found == (one.as_raw_fd(), inode)));
    }
}
