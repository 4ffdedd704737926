//! What must hold before the agent does anything: its rights, its directories, and that it is the only one.

use std::fs::{File, Permissions};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use caps::{CapSet, Capability};
use nix::fcntl::{Flock, FlockArg};

use super::{Error, io};
use crate::config::Config;

/// The capabilities that the supervisor can't do without, and what for.
const NEEDED: &[(Capability, &str)] = &[
    (Capability::CAP_BPF, "load programs"),
    (Capability::CAP_NET_ADMIN, "attach programs and close sockets"),
    (Capability::CAP_PERFMON, "read kernel structures"),
    (Capability::CAP_SYS_ADMIN, "enter network namespaces"),
    (Capability::CAP_SYS_PTRACE, "read /proc of other users"),
    (Capability::CAP_DAC_READ_SEARCH, "read executables"),
    (Capability::CAP_SETUID, "start the worker as another user"),
    (Capability::CAP_SETGID, "start the worker as another user"),
];

/// Those that this process lacks, each with its purpose, for a message; `None` if it has all.
#[must_use]
pub fn missing() -> Option<String> {
    let missing: Vec<String> = NEEDED
        .iter()
        .filter(|(capability, _)| !caps::has_cap(None, CapSet::Effective, *capability).unwrap_or(false))
        .map(|(capability, purpose)| format!("{capability} (to {purpose})"))
        .collect();
    (!missing.is_empty()).then(|| missing.join(", "))
}

/// Makes the directories and takes the locks, which hold until they are dropped.
///
/// # Errors
/// If a capability is missing, before anything is made; if a directory can't be made, or another agent runs.
pub(super) fn take(config: &Config) -> Result<[Flock<File>; 2], Error> {
    if let Some(missing) = missing() {
        return Err(Error::Rights { missing });
    }
    make_directories(config)?;
    Ok([lock(&config.runtime_dir)?, lock(&config.state_dir)?])
}

fn make_directories(config: &Config) -> Result<(), Error> {
    std::fs::create_dir_all(&config.state_dir).map_err(io("make", &config.state_dir))?;
    make_runtime_dir(&config.runtime_dir)?;
    if let Some(dir) = config.audit.file.parent() {
        std::fs::create_dir_all(dir).map_err(io("make", dir))?;
    }
    Ok(())
}

/// Managed users find their trust bundle in it, and everybody the admin socket.
fn make_runtime_dir(dir: &Path) -> Result<(), Error> {
    if dir.exists() {
        return Ok(());
    }
    std::fs::create_dir_all(dir)
        .and_then(|()| std::fs::set_permissions(dir, Permissions::from_mode(0o755)))
        .map_err(io("make", dir))
}

/// One agent at a time: two would hand the same workloads to two policies. Who can open the file can hold the
/// lock, so nobody else may read it either.
pub(super) fn lock(dir: &Path) -> Result<Flock<File>, Error> {
    let path = dir.join("lock");
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(io("make", &path))?;
    let open_to_others = file.metadata().is_ok_and(|found| found.mode() & 0o077 != 0);
    if open_to_others {
        file.set_permissions(Permissions::from_mode(0o600))
            .map_err(io("close to others", &path))?;
    }
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_held| Error::Locked { path })
}
