//! Workers that a supervisor before this one left to end their calls alone.
//!
//! Each holds the lock of its in-flight table, the name of which says under which policy it was left. Nobody can put
//! another policy to its calls: one that differs from the policy in force is ended.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::identity::Sha256;

/// How long a killed worker may take to be gone, in milliseconds.
const PATIENCE: u16 = 5000;

/// What the table of a worker is called that is left under this policy.
pub(super) fn named(table: &Path, policy: Sha256) -> PathBuf {
    let mut name = table.as_os_str().to_owned();
    name.push(format!("-{policy}"));
    PathBuf::from(name)
}

/// Whether the table is of a worker that was left under this policy.
pub(super) fn is_under(table: &Path, policy: Sha256) -> bool {
    let name = table.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.ends_with(&format!("-{policy}")))
}

/// The tables that workers work with, of those in the agent's directory.
///
/// # Errors
/// If the directory can't be read.
pub(super) fn tables(state_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(state_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let is_table = |path: &PathBuf| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.starts_with("inflight-"))
    };
    let paths = entries.flatten().map(|entry| entry.path());
    Ok(paths.filter(is_table).filter(|path| is_held(path)).collect())
}

/// Whether a worker lives that works with this table: it holds the lock for that long.
pub(super) fn is_held(table: &Path) -> bool {
    let locked = File::open(table).map(|table| table.try_lock());
    matches!(locked, Ok(Err(TryLockError::WouldBlock)))
}

/// Kills all who work with these tables, and waits until they are gone.
///
/// # Errors
/// If one is not found or does not end.
pub(super) fn end_all(tables: &[PathBuf]) -> io::Result<()> {
    for table in tables {
        let process = match end(table) {
            Err(_) if !is_held(table) => continue,
            found => found?,
        };
        let mut ended = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ended, PATIENCE)? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
    Ok(())
}

/// Kills the process that works with this table. Its calls are recorded as those of any worker that died.
///
/// # Errors
/// If it is not found.
pub(super) fn end(table: &Path) -> io::Result<OwnedFd> {
    let inode = fs::metadata(table)?.ino();
    let pids = fs::read_dir("/proc")?.flatten().filter_map(|entry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        Pid::from_raw(number)
    });
    for pid in pids {
        // Held first: what is read then is of the process that the signal goes to.
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
            continue;
        };
        let maps = fs::read_to_string(format!("/proc/{}/maps", pid.as_raw_nonzero())).unwrap_or_default();
        if maps.lines().any(|line| is_of(line, inode)) {
            pidfd_send_signal(&process, Signal::KILL)?;
            return Ok(process);
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// Whether a line of /proc/PID/maps is of a table with this inode. The device there is not stat's on every file system.
fn is_of(line: &str, inode: u64) -> bool {
    let mut fields = line.split_whitespace().skip(4);
    fields.next().and_then(|field| field.parse().ok()) == Some(inode)
        && fields.next().is_some_and(|path| path.contains("/inflight-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_told_by_inode_and_name() {
        let line = "7f0000000000-7f0000800000 rw-s 00000000 fe:00 4711     /var/lib/callgate/inflight-1-1-ab";
        assert!(is_of(line, 4711));
        assert!(!is_of(line, 4712));
        assert!(!is_of(
            "7f00-7f01 r--p 00000000 fe:00 4711 /usr/lib/libc.so.6",
            4711
        ));
        assert!(!is_of("7f00-7f01 rw-p 00000000 00:00 0", 0));
    }

    #[test]
    fn the_name_of_a_table_says_under_which_policy_its_worker_was_left() {
        let [one, other] = [[1; 32], [2; 32]].map(Sha256);
        let table = Path::new("/state/inflight-1-1");
        assert!(is_under(&named(table, one), one));
        assert!(!is_under(&named(table, one), other));
        assert!(!is_under(table, one));
    }
}
