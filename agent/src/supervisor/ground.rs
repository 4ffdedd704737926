//! What must hold before the agent does anything: its rights, its directories, and that it is the only one.

use std::fs::{File, Permissions};
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
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
        .read(true)
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
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(held) => {
            // In the first line; what is left of a longer number follows it.
            let own = format!("{}\n", std::process::id());
            held.write_all_at(own.as_bytes(), 0).map_err(io("write", &path))?;
            Ok(held)
        }
        Err((file, _held)) => Err(Error::Locked {
            holder: holder(&file),
            path,
        }),
    }
}

/// The process that says of itself that it has this lock.
fn holder(mut file: &File) -> Option<u32> {
    let mut text = String::new();
    // One without a number may just have been taken; one that can't be read is held all the same.
    file.read_to_string(&mut text).ok()?;
    text.lines().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(dir: &Path) -> String {
        lock(dir).expect_err("it is held").to_string()
    }

    #[test]
    fn who_is_refused_a_lock_is_told_whose_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        std::fs::write(&path, "4194304\n").unwrap();
        let held = lock(dir.path()).unwrap();
        let (own, path) = (std::process::id(), path.display());
        assert_eq!(
            refused(dir.path()),
            format!("another agent holds {path} (process {own}); stop it first")
        );
        held.set_len(0).unwrap();
        assert_eq!(
            refused(dir.path()),
            format!("another agent holds {path}; stop it first")
        );
    }
}
