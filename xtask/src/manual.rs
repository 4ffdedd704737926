//! `cargo xtask manual`: man pages and shell completions under `agent/dist`, from the command line's definition, and
//! `agent/config/default.toml`, from the settings' types. A test in `tests/manual` says when they are out of date.

use anyhow::Result;

use crate::cmd::{self, Outcome};
use crate::setup;

/// Writes them.
pub(crate) fn run() -> Result<Outcome> {
    setup::all()?;
    let write = cmd::cargo([
        "run",
        "--quiet",
        "-p",
        "callgate-tests",
        "--bin",
        "callgate-manual",
    ]);
    let mut write = setup::prepare(write);
    write.arg("--").arg(cmd::root().join("agent"));
    cmd::run(write)?;
    Ok(Outcome::Good)
}
