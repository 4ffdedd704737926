//! The executable of a held process: proven against what the kernel reported, and its digest.
//!
//! A process chooses its mounts (a bind mount, a container) and thereby the path that `/proc/PID/exe` shows.
//! So device and inode are what is proven; the path counts only if it leads the agent to that same file.
//!
//! A process also chooses the file system, and with it who answers: FUSE asks a process, a network file system its
//! server. So files are asked about without a word to them (`AT_STATX_DONT_SYNC`), paths are walked in the kernel's
//! cache alone (`RESOLVE_CACHED`), and only content of local file systems is read.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest;
use nix::sys::stat::makedev;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags};
use serde::{Deserialize, Serialize};

use super::process::{HeldProcess, ProcessError};
use super::{Executable, Sha256};
use crate::budget::{Budgets, Rate};

/// Larger files have no digest, unless the configuration says otherwise: 256 MiB.
pub const DEFAULT_MAX_DIGEST_BYTES: u64 = 256 << 20;
/// More digests than this and the cache starts anew.
const MAX_DIGESTS: usize = 1024;
/// Bytes that one workload may make us read for digests in a second, once it has read twice the largest file.
const READ_PER_SECOND: u64 = 32 << 20;
/// What the smallest file counts for: it takes a place among the digests.
const LEAST: u64 = 1 << 20;
/// A file that changed less than this long ago may change again without its ctime showing it.
const SETTLED_SECONDS: i64 = 2;

/// A walk in the cache fails when a rename crosses it; it is tried this often.
const WALKS: usize = 4;

/// File systems whose reads depend on nobody else, as mountinfo names them. On others (network, FUSE) a read can
/// hang or answer differently each time, so there is no digest. statfs(2) would itself ask them.
const LOCAL_FILE_SYSTEMS: &[&str] = &[
    "ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "bcachefs", "zfs", "overlay", "squashfs", "erofs",
    "tmpfs", "ramfs", "msdos", "vfat", "iso9660",
];

/// A file as the kernel names it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct FileId {
    /// The device number in stat(2)'s form.
    pub device: u64,
    /// The inode number.
    pub inode: u64,
}

/// Why the executable is not known.
#[derive(Debug, thiserror::Error)]
pub enum ExecutableError {
    /// The process ended or can't be read.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The kernel reported no process (in the agent's pid namespace), start time or executable.
    #[error("the kernel's record lacks the process, its start time or its executable; see `callgate doctor`")]
    NotReported,
    /// The process runs another file than when it connected.
    #[error("process {pid} runs another executable than when it connected")]
    Changed {
        /// Its number.
        pid: u32,
    },
    /// The process left the cgroup that it connected from.
    #[error("process {pid} is in another cgroup than when it connected")]
    Moved {
        /// Its number.
        pid: u32,
    },
    /// The system refused to describe the file.
    #[error("can't examine the executable of process {pid}: {source}")]
    Stat {
        /// The process.
        pid: u32,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// Looks at executables; keeps digests.
#[derive(Debug)]
pub struct Executables {
    max_digest_bytes: u64,
    digests: Mutex<HashMap<Version, Sha256>>,
    /// One digest is computed at a time: a bound on the load that callers can make, and nobody computes what
    /// another is just computing.
    computing: Mutex<()>,
    /// Bytes that each workload may make us read.
    reading: Budgets<u32>,
}

/// A file's content, as far as stat tells it apart.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Version {
    device: u64,
    inode: u64,
    changed: (i64, u32),
    size: u64,
}

impl Executables {
    /// Digests are made of files up to this size in bytes.
    #[must_use]
    pub fn new(max_digest_bytes: u64) -> Self {
        Self {
            max_digest_bytes,
            digests: Mutex::default(),
            computing: Mutex::default(),
            reading: Budgets::new(Rate {
                burst: max_digest_bytes.saturating_mul(2).max(16 * LEAST),
                per_second: READ_PER_SECOND,
            }),
        }
    }

    /// The file that the process runs, which must be the one that the kernel reported.
    ///
    /// The digest is computed on behalf of the workload `digest_for`, if there is one. A digest that can't be had
    /// (too large, not local, changing, or more than this workload may make us read) is absent.
    ///
    /// # Errors
    /// If the process ended or runs another file.
    pub fn inspect(
        &self,
        process: &HeldProcess,
        reported: FileId,
        digest_for: Option<u32>,
    ) -> Result<Executable, ExecutableError> {
        let pid = process.pid();
        let file = process.executable()?;
        let found = look(&file).map_err(|source| ExecutableError::Stat { pid, source })?;
        let same_device = found.device == reported.device
            || mount_of(process, &file).is_some_and(|mount| mount.device == reported.device);
        if found.inode != reported.inode || !same_device {
            return Err(ExecutableError::Changed { pid });
        }
        Ok(Executable {
            path: proven_path(&file, &found),
            device: reported.device,
            inode: reported.inode,
            sha256: digest_for.and_then(|workload| self.digest(workload, process, &file, found)),
        })
    }

    fn digest(
        &self,
        workload: u32,
        process: &HeldProcess,
        file: &OwnedFd,
        version: Version,
    ) -> Option<Sha256> {
        if let Some(known) = self.known(&version) {
            return Some(known);
        }
        let is_local = mount_of(process, file).is_some_and(|mount| mount.is_local);
        if !is_local || version.size > self.max_digest_bytes {
            return None;
        }
        if !self.reading.spend(&workload, version.size.max(LEAST)) {
            tracing::debug!(
                workload,
                "executables change faster than their digests may be made"
            );
            return None;
        }
        let _one_at_a_time = self.computing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = self.known(&version) {
            return Some(known);
        }
        // Not blocking: a lease that somebody holds on the file would stop the open for a minute.
        let content = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
            .ok()?;
        let sum = sha256(&content, self.max_digest_bytes)?;
        if look(&content).ok()? != version {
            return None;
        }
        if version.is_settled() {
            let mut digests = self.digests.lock().unwrap_or_else(PoisonError::into_inner);
            if digests.len() >= MAX_DIGESTS {
                digests.clear();
            }
            digests.insert(version, sum);
        }
        Some(sum)
    }

    fn known(&self, version: &Version) -> Option<Sha256> {
        let digests = self.digests.lock().unwrap_or_else(PoisonError::into_inner);
        digests.get(version).copied()
    }
}

impl Version {
    fn is_settled(&self) -> bool {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .ok()
            .and_then(|now| i64::try_from(now.as_secs()).ok());
        now.is_some_and(|now| now.saturating_sub(self.changed.0) > SETTLED_SECONDS)
    }
}

/// What the kernel itself knows of a file, without asking whoever keeps it.
fn look(file: impl AsFd) -> std::io::Result<Version> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let found = rustix::fs::statx(file, c"", flags, StatxFlags::BASIC_STATS)?;
    Ok(Version {
        device: makedev(found.stx_dev_major.into(), found.stx_dev_minor.into()),
        inode: found.stx_ino,
        changed: (found.stx_ctime.tv_sec, found.stx_ctime.tv_nsec),
        size: found.stx_size,
    })
}

/// The path that `/proc` shows, if it leads the agent to the same file. The link of the descriptor is read,
/// not the process's: an exec in between can't mix two files.
fn proven_path(file: &OwnedFd, found: &Version) -> Option<PathBuf> {
    let shown = nix::fcntl::readlink(format!("/proc/self/fd/{}", file.as_raw_fd()).as_str()).ok()?;
    let path = PathBuf::from(shown);
    let there = path.is_absolute().then(|| open_cached(&path)).flatten()?;
    let there = look(&there).ok()?;
    (there.device == found.device && there.inode == found.inode).then_some(path)
}

/// A file that runs keeps every directory above it in the kernel's cache, so that a walk which leaves the cache is
/// not on the way to it; it might end at somebody who never answers.
fn open_cached(path: &Path) -> Option<OwnedFd> {
    let how = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::CACHED | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..WALKS {
        match rustix::fs::openat2(CWD, path, how, Mode::empty(), resolve) {
            Ok(opened) => return Some(opened),
            Err(rustix::io::Errno::AGAIN) => {}
            Err(_) => return None,
        }
    }
    None
}

/// What mountinfo says of a mount.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Mount {
    /// The file system's device as the kernel's own records have it. stat(2) shows another number on Btrfs (one for
    /// each subvolume) and on overlayfs (the layer's).
    device: u64,
    is_local: bool,
}

/// The mount that the file lies on.
fn mount_of(process: &HeldProcess, file: &OwnedFd) -> Option<Mount> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim();
    find_mount(&process.read("mountinfo").ok()?, id)
        .or_else(|| find_mount(&std::fs::read_to_string("/proc/self/mountinfo").ok()?, id))
}

/// Fields one (mount id), three (device) and the one behind the lone dash (type) of proc_pid_mountinfo(5).
fn find_mount(mountinfo: &str, id: &str) -> Option<Mount> {
    mountinfo.lines().find_map(|line| {
        let mut fields = line.split(' ');
        if fields.next()? != id {
            return None;
        }
        let (major, minor) = fields.nth(1)?.split_once(':')?;
        let kind = fields.skip_while(|field| *field != "-").nth(1)?;
        Some(Mount {
            device: makedev(major.parse().ok()?, minor.parse().ok()?),
            is_local: LOCAL_FILE_SYSTEMS.contains(&kind),
        })
    })
}

fn sha256(content: &File, max_bytes: u64) -> Option<Sha256> {
    let mut context = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; 1 << 16];
    let mut left = content.take(max_bytes.saturating_add(1));
    let mut total = 0_u64;
    loop {
        let count = left.read(&mut buffer).ok()?;
        if count == 0 {
            break;
        }
        total += u64::try_from(count).ok()?;
        context.update(buffer.get(..count)?);
    }
    if total > max_bytes {
        return None;
    }
    context.finish().as_ref().try_into().ok().map(Sha256)
}

#[cfg(test)]
mod tests;
