//! `callgate prepare`: what `callgate.service` has done with full rights before each start, since the agent itself sees
//! `/sys` read-only.

use std::fs::File;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use nix::sched::{CloneFlags, setns};

use super::enable::own;
use super::{LACKING, WRONG, complain};
use crate::ebpf;

/// Makes the directory for pins, on a BPF file system, for the whole host to see.
///
/// # Errors
/// If the settings can't be read, or the host's mounts can't be reached.
pub fn run(settings: &Path) -> anyhow::Result<ExitCode> {
    let Some(config) = super::load(settings)? else {
        return Ok(ExitCode::from(WRONG));
    };
    if nix::unistd::getppid().as_raw() == 1 {
        // Not asked of systemd where all is as packaged: each start and stop waits for it.
        let unwritable = if own::is_usual(&config) {
            Vec::new()
        } else {
            own::unwritable(&config)
        };
        for one in &unwritable {
            complain(&format!("{}; {}", one.what, one.fix));
        }
        if !unwritable.is_empty() {
            return Ok(ExitCode::from(LACKING));
        }
        join_host().context("can't enter the service manager's mount namespace")?;
    }
    if let Err(error) = ebpf::prepare_pins(&config.bpffs_dir) {
        complain(&error.to_string());
        return Ok(ExitCode::from(LACKING));
    }
    Ok(ExitCode::SUCCESS)
}

/// A command with full rights (`+`) still gets a mount namespace of its own from systemd, without the limits but one in which
/// what it mounts ends with it.
fn join_host() -> anyhow::Result<()> {
    let manager = File::open("/proc/1/ns/mnt")?;
    setns(manager, CloneFlags::CLONE_NEWNS)?;
    Ok(())
}
