//! `callgate reload`: new policy, or the reasons why not.

use std::io::Write;
use std::process::ExitCode;

use super::enable::state;
use super::{NO, complain};
use crate::admin::{Reloaded, client};
use crate::config::Config;
use crate::policy::store;

/// Has the agent read its policy again; exit code 1 if it has errors, which are shown, and the last one stays. Says
/// which units' drop-ins the new policy makes old.
///
/// # Errors
/// If the agent can't be asked, or `out` not be written to.
pub fn run(config: &Config, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let done: Reloaded = client::ask(&config.admin_socket, "POST", "/v1/reload", Vec::new())?;
    writeln!(out, "{}", done.message)?;
    if done.ok {
        tell_stale(config, out)?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(
        out,
        "the last good policy (generation {}) stays in force",
        done.generation
    )?;
    Ok(ExitCode::from(NO))
}

/// A policy that is in force needs no systemd: where that can't be asked, that is all there is to say.
fn tell_stale(config: &Config, out: &mut dyn Write) -> anyhow::Result<()> {
    let Ok(policy) = store::load_dir(&config.policy_dir).policy else {
        return Ok(());
    };
    match state::stale(config, &policy) {
        Ok(stale) => {
            for (unit, fix) in stale {
                writeln!(out, "{unit}: what its drop-in says is not up to date: {fix}")?;
            }
        }
        Err(error) => complain(&format!(
            "can't see whether units need their drop-ins anew: {error:#}"
        )),
    }
    Ok(())
}
