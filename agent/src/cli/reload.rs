//! `callgate reload`: new policy, or the reasons why not.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use super::NO;
use crate::admin::{Reloaded, client};

/// Has the agent read its policy again; exit code 1 if it has errors, which are shown, and the last one stays.
///
/// # Errors
/// If the agent can't be asked, or `out` not be written to.
pub fn run(socket: &Path, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let done: Reloaded = client::ask(socket, "POST", "/v1/reload", Vec::new())?;
    writeln!(out, "{}", done.message)?;
    if done.ok {
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(
        out,
        "the last good policy (generation {}) stays in force",
        done.generation
    )?;
    Ok(ExitCode::from(NO))
}
