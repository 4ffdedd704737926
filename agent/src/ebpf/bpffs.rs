//! The BPF file system that pins are on: mounted where there is none, and taken away again.

use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::Error;
use super::pins::make_dir;

/// Where distributions mount one for all. Below it nothing can be made before: it lies on sysfs.
const STANDARD: &str = "/sys/fs/bpf";
/// What a mount is said to be of that is the agent's alone, and goes with it.
const OWN: &str = "callgate";

/// Makes the directory for pins, with a BPF file system below it, where a service manager's other limits would not let the
/// agent do so.
///
/// # Errors
/// If it can't be mounted or made.
pub fn prepare(dir: &Path) -> Result<(), Error> {
    if dir.starts_with(STANDARD) {
        mount_if_none(Path::new(STANDARD), "bpf")?;
    }
    make_dir(dir)?;
    mount_if_none(dir, OWN)
}

fn mount_if_none(dir: &Path, source: &str) -> Result<(), Error> {
    let system = statfs(dir).map_err(|errno| Error::file("inspect", dir, errno.into()))?;
    if system.filesystem_type() == BPF_FS_MAGIC {
        return Ok(());
    }
    mount(
        Some(source),
        dir,
        Some("bpf"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        Some("mode=0700"),
    )
    .map_err(|errno| Error::file("mount a BPF file system on", dir, errno.into()))
}

/// Unmounts from `dir` what [`prepare`] mounted there. Says whether the directory, if there is one, can be removed: none can on
/// which the operator mounted something.
///
/// # Errors
/// If mounts can't be told, or it can't be unmounted.
pub(super) fn give_back(dir: &Path) -> Result<bool, Error> {
    let file = "/proc/self/mountinfo";
    let mounts = procfs::process::Process::myself()
        .and_then(|own| own.mountinfo())
        .map_err(|error| Error::file("read", file, std::io::Error::other(error)))?;
    let on_it: Vec<_> = mounts.into_iter().filter(|one| one.mount_point == dir).collect();
    if on_it.iter().any(|one| one.mount_source.as_deref() != Some(OWN)) {
        return Ok(false);
    }
    for _ in on_it {
        umount2(dir, MntFlags::UMOUNT_NOFOLLOW).map_err(|errno| Error::file("unmount", dir, errno.into()))?;
    }
    Ok(true)
}
