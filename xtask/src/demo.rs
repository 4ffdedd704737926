//! `cargo xtask demo`: builds what the demo needs and becomes it.

use std::os::unix::process::CommandExt as _;

use anyhow::{Context, Result};

use crate::cmd::{self, Outcome};
use crate::setup;
use crate::test;

/// Does not return unless something is wrong: the demo takes this process's place, so that Ctrl-C and the exit
/// code are its own.
pub(crate) fn run(json: bool) -> Result<Outcome> {
    if !cmd::is_root() {
        eprintln!("demo: needs root, for BPF, cgroups and namespaces of its own: sudo cargo xtask demo");
        return Ok(Outcome::Lacking);
    }
    setup::all()?;
    eprintln!("demo: building");
    let agent = test::build("callgate", "callgate")?;
    let demo = test::build("callgate-tests", "callgate-demo")?;
    let mut command = cmd::command(&demo.to_string_lossy(), json.then_some("--json"));
    let error = command.env("CALLGATE_BIN", agent).exec();
    Err(error).with_context(|| format!("can't start {}", demo.display()))
}
