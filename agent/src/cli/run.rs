//! `callgate run`: the daemon.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;

use super::{LACKING, WRONG};
use crate::policy::store;
use crate::supervisor::{self, Error};
use crate::{rights, supervisor::sandbox, telemetry};

/// Runs until it is told to stop.
///
/// # Errors
/// If logging can't be set up. Why the agent can't run is logged, and is in the exit code.
pub fn run(path: &Path, user: Option<&str>) -> anyhow::Result<ExitCode> {
    let Some(config) = super::load(path)? else {
        return Ok(ExitCode::from(WRONG));
    };
    telemetry::init(config.log_level.as_str(), telemetry::destination())?;
    if let Some(user) = user {
        rights::go_on_as(user)?;
    }
    // What others may read is opened to them by name.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    sandbox::keep_memory_private().context("can't keep this process's memory private")?;
    let policy_dir = config.policy_dir.clone();
    match super::runtime()?.block_on(supervisor::run(config)) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(Error::Policy(found)) => {
            super::show(&found, &store::load_dir(&policy_dir).sources);
            super::complain("the policy has errors; `callgate check` shows them too");
            Ok(ExitCode::from(WRONG))
        }
        Err(error) => {
            tracing::error!("{error}");
            Ok(ExitCode::from(LACKING))
        }
    }
}
