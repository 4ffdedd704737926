//! A process held still: every fact is read through one descriptor of its `/proc/PID` directory.
//!
//! The kernel binds that directory to the process, not to its number: once the process is reaped, reads
//! through the descriptor fail (ESRCH, ENOENT), even if the number has been given to another. It is as good a
//! hold as a pidfd (fs/proc/base.c, `get_proc_task`) and also gives the facts.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use nix::unistd::{SysconfVar, sysconf};

/// More of a `/proc` file than this is not read.
const MAX_READ: u64 = 1 << 20;
/// `/proc/self/ns/pid` of the initial pid namespace (include/linux/proc_ns.h, PROC_PID_INIT_INO).
const INITIAL_PID_NAMESPACE: u64 = 0xEFFF_FFFC;
const NANOSECONDS: u64 = 1_000_000_000;

/// Why a process can't be looked at.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It ended, or its number belongs to another by now.
    #[error("process {pid} has ended")]
    Gone {
        /// Its number.
        pid: u32,
    },
    /// `/proc` refused or showed something unknown.
    #[error(
        "can't read /proc/{pid}/{file}: {source}; the agent needs CAP_SYS_PTRACE and a /proc without hidepid"
    )]
    Read {
        /// Its number.
        pid: u32,
        /// Which file.
        file: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// One process, by descriptor.
#[derive(Debug)]
pub struct HeldProcess {
    pid: u32,
    dir: OwnedFd,
}

impl HeldProcess {
    /// Takes hold of whatever process has the number now.
    ///
    /// # Errors
    /// If there is none.
    pub fn open(pid: u32) -> Result<Self, ProcessError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let dir = open(format!("/proc/{pid}").as_str(), flags, Mode::empty())
            .map_err(|errno| read_error(pid, "", errno))?;
        Ok(Self { pid, dir })
    }

    /// Takes hold of the process that started at `start_time` (nanoseconds of CLOCK_BOOTTIME).
    ///
    /// # Errors
    /// [`ProcessError::Gone`] if the number belongs to another process by now.
    pub fn open_started_at(pid: u32, start_time: u64) -> Result<Self, ProcessError> {
        let process = Self::open(pid)?;
        let ticks = process.start_ticks()?;
        if ticks == ticks_of(start_time) {
            Ok(process)
        } else {
            Err(ProcessError::Gone { pid })
        }
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// When it started, in clock ticks since boot (proc_pid_stat(5), field 22).
    ///
    /// # Errors
    /// If it has ended.
    pub fn start_ticks(&self) -> Result<u64, ProcessError> {
        let stat = self.read("stat")?;
        start_ticks_of(&stat).ok_or_else(|| ProcessError::Read {
            pid: self.pid,
            file: "stat",
            source: std::io::ErrorKind::InvalidData.into(),
        })
    }

    /// When it started, in nanoseconds of CLOCK_BOOTTIME, as exact as `/proc` is: whole ticks.
    ///
    /// # Errors
    /// If it has ended.
    pub fn start_time(&self) -> Result<u64, ProcessError> {
        Ok(self.start_ticks()?.saturating_mul(tick()))
    }

    /// Its real user and group.
    ///
    /// # Errors
    /// If it has ended.
    pub fn ids(&self) -> Result<(u32, u32), ProcessError> {
        let status = self.read("status")?;
        let id = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_ascii_whitespace().next()?.parse().ok()
        };
        match (id("Uid:"), id("Gid:")) {
            (Some(uid), Some(gid)) => Ok((uid, gid)),
            _ => Err(ProcessError::Read {
                pid: self.pid,
                file: "status",
                source: std::io::ErrorKind::InvalidData.into(),
            }),
        }
    }

    /// Its cgroup below the v2 mount, as `/proc/PID/cgroup` shows it to the agent. A removed cgroup's path
    /// ends in " (deleted)"; check the id of what the path leads to.
    ///
    /// # Errors
    /// If it has ended.
    pub fn cgroup(&self) -> Result<Option<String>, ProcessError> {
        let text = self.read("cgroup")?;
        Ok(unified_path(&text).map(str::to_owned))
    }

    /// The root of the files that it sees, as an O_PATH descriptor.
    ///
    /// # Errors
    /// If it has ended.
    pub fn root(&self) -> Result<OwnedFd, ProcessError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        openat(&self.dir, "root", flags, Mode::empty()).map_err(|errno| read_error(self.pid, "root", errno))
    }

    /// The file that it runs, as an O_PATH descriptor.
    ///
    /// # Errors
    /// If it has ended or has no executable (a kernel thread).
    pub fn executable(&self) -> Result<OwnedFd, ProcessError> {
        openat(&self.dir, "exe", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|errno| read_error(self.pid, "exe", errno))
    }

    /// The inode of the network namespace that it is in; `None` if it has ended.
    #[must_use]
    pub fn netns_inode(&self) -> Option<u64> {
        let shown = nix::fcntl::readlinkat(&self.dir, "ns/net").ok()?;
        let inode = shown.to_str()?.strip_prefix("net:[")?.strip_suffix(']')?;
        inode.parse().ok()
    }

    /// The network namespace that it is in now, held, with its inode.
    ///
    /// # Errors
    /// If it has ended.
    pub fn netns(&self) -> Result<(u64, OwnedFd), ProcessError> {
        let failed = |errno| read_error(self.pid, "ns/net", errno);
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let file = openat(&self.dir, "ns/net", flags, Mode::empty()).map_err(failed)?;
        let inode = nix::sys::stat::fstat(&file).map_err(failed)?.st_ino;
        Ok((inode, file))
    }

    /// One small text file of its `/proc` directory; bytes that aren't UTF-8 are replaced.
    ///
    /// # Errors
    /// If it has ended.
    pub fn read(&self, file: &'static str) -> Result<String, ProcessError> {
        let fd = openat(&self.dir, file, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|errno| read_error(self.pid, file, errno))?;
        let mut bytes = Vec::new();
        std::fs::File::from(fd)
            .take(MAX_READ)
            .read_to_end(&mut bytes)
            .map_err(|source| io_error(self.pid, file, source))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl AsFd for HeldProcess {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

fn read_error(pid: u32, file: &'static str, errno: nix::errno::Errno) -> ProcessError {
    io_error(pid, file, errno.into())
}

fn io_error(pid: u32, file: &'static str, source: std::io::Error) -> ProcessError {
    match source.raw_os_error() {
        Some(libc::ESRCH | libc::ENOENT) => ProcessError::Gone { pid },
        _ => ProcessError::Read { pid, file, source },
    }
}

/// Whether the agent sees the numbers that the kernel's programs report: those of the initial pid namespace.
#[must_use]
pub fn in_initial_pid_namespace() -> bool {
    nix::sys::stat::stat("/proc/self/ns/pid").is_ok_and(|stat| stat.st_ino == INITIAL_PID_NAMESPACE)
}

/// `start_time` as `/proc` rounds it: whole ticks, cut off (fs/proc/array.c, `nsec_to_clock_t`).
fn ticks_of(start_time: u64) -> u64 {
    start_time / tick()
}

/// One tick of `/proc`, in nanoseconds.
fn tick() -> u64 {
    let per_second = match sysconf(SysconfVar::CLK_TCK) {
        Ok(Some(ticks)) => u64::try_from(ticks).unwrap_or(100).clamp(1, NANOSECONDS),
        Ok(None) | Err(_) => 100,
    };
    NANOSECONDS / per_second
}

/// Field 22; the second field is the command's name in brackets and may itself hold brackets and spaces.
fn start_ticks_of(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The line of hierarchy 0 (cgroups(7)).
fn unified_path(cgroup: &str) -> Option<&str> {
    cgroup.lines().find_map(|line| line.strip_prefix("0::"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_behind_a_hostile_name() {
        let fields = (3..=52).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        let stat = format!("7 (a) 1 2 (b) ) {fields}\n");
        assert_eq!(start_ticks_of(&stat), Some(22));
        assert_eq!(start_ticks_of("7 (a"), None);
        assert_eq!(start_ticks_of("7 (a) R 1"), None);
    }

    #[test]
    fn the_unified_line_is_taken_on_hybrid_hosts() {
        assert_eq!(unified_path("4:memory:/x\n0::/a/b\n"), Some("/a/b"));
        assert_eq!(unified_path("4:memory:/x\n"), None);
    }

    #[test]
    fn a_process_that_was_reaped_is_gone_even_while_held() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let held = HeldProcess::open(child.id()).unwrap();
        assert!(held.start_ticks().is_ok());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(matches!(held.start_ticks(), Err(ProcessError::Gone { .. })));
        assert!(matches!(held.executable(), Err(ProcessError::Gone { .. })));
    }

    #[test]
    fn a_recycled_number_is_told_by_its_start_time() {
        let own = HeldProcess::open(std::process::id()).unwrap();
        let start = own.start_ticks().unwrap() * (NANOSECONDS / 100) + 5;
        assert!(HeldProcess::open_started_at(std::process::id(), start).is_ok());
        assert!(HeldProcess::open_started_at(std::process::id(), own.start_time().unwrap()).is_ok());
        let other = start + NANOSECONDS;
        assert!(matches!(
            HeldProcess::open_started_at(std::process::id(), other),
            Err(ProcessError::Gone { .. })
        ));
    }
}
