//! Workers that a supervisor before this one left to end their calls alone.
//!
//! Each holds the lock of its in-flight table, the name of which says when and under which policy it was left. Nobody can
//! put another policy to its calls: one that differs from the policy in force is ended. Its time runs from when it was left,
//! however often the agent is started meanwhile.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, poll};
use nix::time::{ClockId, clock_gettime};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::identity::Sha256;

/// When a worker that was left has ended if it does as it was told, its last records included.
pub(super) const LONGEST: Duration = Duration::from_secs(27);
/// How long a killed worker may take to be gone, in milliseconds.
const PATIENCE: u16 = 5000;

/// What stands before the time.
const AT: &str = "left";

/// What the table of a worker is called that is left at this time, by the clock that its own deadline goes by, under this
/// policy.
pub(super) fn named(table: &Path, at: Duration, policy: Sha256) -> PathBuf {
    let mut name = table.as_os_str().to_owned();
    name.push(format!("-{AT}{}-{policy}", at.as_millis()));
    PathBuf::from(name)
}

/// Whether the time is over of the worker of this table, or began after `now`. `None` if its name tells no time.
pub(super) fn is_overdue(table: &Path, now: Duration) -> Option<bool> {
    let mut parts = table.file_name()?.to_str()?.rsplit('-');
    let at = parts.nth(1)?.strip_prefix(AT)?.parse().ok()?;
    let age = now.checked_sub(Duration::from_millis(at));
    Some(age.is_none_or(|age| age > LONGEST))
}

/// Now, by that clock.
pub(super) fn now() -> Duration {
    // The call fails for an unknown clock only; every kernel has this one.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::MAX, Duration::from)
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
        let processes = match end(table) {
            Err(_) if !is_held(table) => continue,
            found => found?,
        };
        for process in processes {
            let mut ended = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
            if poll(&mut ended, PATIENCE)? == 0 {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
    Ok(())
}

/// Kills who works with this table. The calls are recorded as those of any worker that died.
///
/// # Errors
/// If nobody is found.
pub(super) fn end(table: &Path) -> io::Result<Vec<OwnedFd>> {
    let inode = fs::metadata(table)?.ino();
    let pids = fs::read_dir("/proc")?.flatten().filter_map(|entry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        Pid::from_raw(number)
    });
    let mut killed = Vec::new();
    for pid in pids {
        // Held first: what is read then is of the process that the signal goes to.
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
            continue;
        };
        if holds(pid, table, inode) {
            pidfd_send_signal(&process, Signal::KILL)?;
            killed.push(process);
        }
    }
    if killed.is_empty() {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(killed)
}

/// Whether the process has the table open: a file of its name and inode. Files are not asked themselves, for that may
/// hang; the kernel says the inode (proc_pid_fdinfo(5), since Linux 5.14). The name alone proves nothing: any process may be
/// handed another file that is called so.
fn holds(pid: Pid, table: &Path, inode: u64) -> bool {
    let process = Path::new("/proc").join(pid.as_raw_nonzero().to_string());
    let open = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    let mut named = open.filter(|entry| {
        let target = fs::read_link(entry.path());
        target.is_ok_and(|target| target.is_absolute() && target.file_name() == table.file_name())
    });
    named.any(|entry| {
        let info = fs::read_to_string(process.join("fdinfo").join(entry.file_name())).unwrap_or_default();
        let said = info.lines().find_map(|line| line.strip_prefix("ino:"));
        said.and_then(|said| said.trim().parse().ok()) == Some(inode)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_works_with_a_table_is_found_by_its_open_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("inflight-0-1");
        let table = File::create(&path).unwrap();
        let own = rustix::process::getpid();
        let inode = fs::metadata(&path).unwrap().ino();
        assert!(holds(own, &path, inode));
        // Another file of that name.
        assert!(!holds(own, &path, inode + 1));
        assert!(!is_held(&path));
        table.lock().unwrap();
        assert!(is_held(&path));
        assert_eq!(tables(dir.path()).unwrap(), std::slice::from_ref(&path));
        drop(table);
        assert!(!holds(own, &path, inode));
    }

    #[test]
    fn the_name_of_a_table_says_under_which_policy_its_worker_was_left() {
        let [one, other] = [[1; 32], [2; 32]].map(Sha256);
        let table = Path::new("/state/inflight-1-1");
        let at = Duration::from_secs(1000);
        let named = named(table, at, one);
        assert!(is_under(&named, one));
        assert!(!is_under(&named, other));
        assert!(!is_under(table, one));
    }

    #[test]
    fn the_time_of_a_worker_runs_from_when_it_was_left() {
        let at = Duration::from_secs(1000);
        let table = named(Path::new("/state/inflight-1-1"), at, Sha256([1; 32]));
        assert_eq!(is_overdue(&table, at), Some(false));
        assert_eq!(is_overdue(&table, at + LONGEST), Some(false));
        assert_eq!(is_overdue(&table, at + LONGEST * 2), Some(true));
        assert_eq!(is_overdue(&table, Duration::ZERO), Some(true));
        for without in ["/state/inflight-1-1", "/state/inflight-1-1-abc"] {
            assert_eq!(is_overdue(Path::new(without), at), None, "{without}");
        }
    }
}
