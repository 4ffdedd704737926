//! What is tried on each kernel: agent, tests, and the kernel programs in more builds than the one that the agent has.

#[path = "../../../agent/build/object.rs"]
mod object;

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::test;
use crate::{cmd, setup};

/// Where everything is that a guest takes over, each at the same place.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) agent: PathBuf,
    pub(crate) probe: PathBuf,
    pub(crate) tests: PathBuf,
    /// Kernel programs by the name of their build.
    pub(crate) objects: Vec<(&'static str, PathBuf)>,
}

/// Builds all of it.
pub(crate) fn all() -> Result<Built> {
    let agent = agent()?;
    let (tests, probe) = test::build_end_to_end()?;
    Ok(Built {
        agent,
        probe,
        tests,
        objects: vec![("dev", dev_object()?)],
    })
}

/// The agent, linked statically: it runs on any of the kernels whatever C library a host has.
fn agent() -> Result<PathBuf> {
    let built = test::build_static()?;
    let kept = cmd::root().join("target/vm/callgate");
    fs::copy(&built, &kept).with_context(|| format!("can't keep {}", built.display()))?;
    // cargo has put it where the one for this machine belongs.
    test::build("callgate", "callgate")?;
    Ok(kept)
}

/// The kernel programs in another build than the agent's.
fn dev_object() -> Result<PathBuf> {
    let (command, built) = dev("build");
    cmd::run(command)?;
    Ok(built)
}

/// clippy's view of the kernel programs; of a compiler's alone where that has no clippy, as Debian's. Both deny warnings.
pub(crate) fn lint() -> Command {
    let (mut command, _) = dev("clippy");
    if command
        .get_envs()
        .any(|(name, value)| name == "RUSTC" && value.is_some())
    {
        return dev("build").0;
    }
    command.args(["--", "-D", "warnings"]);
    command
}

/// A cargo that does this with the dev build, and where that is.
fn dev(verb: &str) -> (Command, PathBuf) {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let (package, target) = (cmd::root().join("agent-ebpf"), cmd::root().join("target/vm/bpf"));
    let machine = (env::consts::ARCH, cfg!(target_endian = "little"));
    let (command, built) = object::cargo((&cargo, verb), (&package, &target), machine, false);
    let mut command = setup::prepare(command);
    let compiler: Option<OsString> = command
        .get_envs()
        .find(|(name, _)| *name == "CALLGATE_BPF_RUSTC")
        .and_then(|(_, value)| value.map(ToOwned::to_owned));
    if let Some(compiler) = compiler {
        command.env("RUSTC", compiler);
    }
    (command, built)
}
