//! `cargo xtask train`: a profile of the agent under load. The optimised builds that follow use it: the compiler then knows
//! which code calls run, and lays out and inlines by that.
//!
//! The load is that of `bench peers`: calls over HTTP/1.1 and HTTP/2, handshakes, large bodies. A profile is good for the
//! folder that it was made in: functions are known by names that cargo makes from the path, too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use crate::bench;
use crate::cmd::{self, Outcome};
use crate::setup;
use crate::test;

/// How a profile's file ends; it begins with the time when it was made: cargo builds anew for another name alone.
const PROFILE: &str = "profdata";

/// Counts, runs the load, and keeps the profile for the builds to come.
pub(crate) fn run() -> Result<Outcome> {
    if !cmd::is_root() {
        eprintln!("train: needs root, for a sandbox of its own: sudo -E cargo xtask train");
        return Ok(Outcome::Lacking);
    }
    setup::all()?;
    let counts = place().join("counts");
    if counts.exists() {
        fs::remove_dir_all(&counts).with_context(|| format!("can't remove {}", counts.display()))?;
    }
    // The worker may open no file: its counters are in a mapping of one that was opened before it was shut in. Such a file
    // has no room for the profile of values.
    let flags = [
        format!("-Cprofile-generate={}", counts.join("%c").display()),
        "-Cllvm-args=-runtime-counter-relocation -disable-vp".to_owned(),
    ];
    let mut build = release();
    build.arg("--target-dir").arg(place().join("build"));
    let agent = test::built(with_flags(build, &flags)?, "callgate")?;
    let load = [
        "--peers", "callgate", "--rounds", "1", "--secs", "4", "--settle", "0",
    ];
    bench::sandboxed(&agent, "measure.sh", &load.map(ToOwned::to_owned))?;
    let profile = merge(&counts)?;
    eprintln!("train: optimised builds use {} from now on", profile.display());
    Ok(Outcome::Good)
}

/// Builds the agent optimised, with the last profile if there is one, and says where it is.
pub(crate) fn build() -> Result<PathBuf> {
    let Some(profile) = latest()? else {
        eprintln!(
            "train: built without a profile; with one (`cargo xtask train`) a call takes less of the processor"
        );
        return test::built(release(), "callgate");
    };
    // Else the compiler warns of each call that has no profile of values, and of each function that has changed since, for
    // which it does without a profile.
    let flags = [
        format!("-Cprofile-use={}", profile.display()),
        "-Cllvm-args=-disable-vp -no-pgo-warn-mismatch".to_owned(),
    ];
    test::built(with_flags(release(), &flags)?, "callgate")
}

/// What the tables of a measurement say of it.
pub(crate) fn how_built() -> Result<&'static str> {
    Ok(match latest()? {
        Some(_) => "Built with a profile (`cargo xtask train`).",
        None => "Built without a profile.",
    })
}

fn release() -> Command {
    cmd::cargo(["build", "--package", "callgate", "--bin", "callgate", "--release"])
}

/// Flags for the agent and what it is made of, and not for build scripts: that takes naming the target.
fn with_flags(mut build: Command, flags: &[String]) -> Result<Command> {
    let version = cmd::read(cmd::command("rustc", ["--version", "--verbose"])).context("rustc")?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.context("rustc does not say what it builds for")?;
    build
        .args(["--target", host, "--config"])
        .arg(format!("target.{host}.rustflags={flags:?}"));
    Ok(build)
}

/// Makes one profile of all that was counted, and removes those before it.
fn merge(counts: &Path) -> Result<PathBuf> {
    let before = latest()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let profile = place().join(format!("{now}.{PROFILE}"));
    let mut merge = cmd::command::<&str>(&profdata()?.to_string_lossy(), []);
    merge.args(["merge", "--output"]).arg(&profile).arg(counts);
    cmd::run(merge)?;
    if let Some(before) = before {
        fs::remove_file(&before).with_context(|| format!("can't remove {}", before.display()))?;
    }
    Ok(profile)
}

/// The compiler's own tool if rustup has it, else that of the same LLVM.
fn profdata() -> Result<PathBuf> {
    let sysroot = cmd::read(cmd::command("rustc", ["--print", "target-libdir"])).context("rustc")?;
    let own = Path::new(sysroot.trim())
        .with_file_name("bin")
        .join("llvm-profdata");
    let found = [own, setup::llvm_prefix()?.join("bin/llvm-profdata")];
    match found.into_iter().find(|tool| tool.is_file()) {
        Some(tool) => Ok(tool),
        None => bail!("there is no llvm-profdata: rustup component add llvm-tools"),
    }
}

fn latest() -> Result<Option<PathBuf>> {
    let dir = place();
    if !dir.is_dir() {
        return Ok(None);
    }
    let mut profiles = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("can't read {}", dir.display()))? {
        profiles.push(entry?.path());
    }
    profiles.retain(|path| path.extension().is_some_and(|end| end == PROFILE));
    Ok(profiles.into_iter().max())
}

fn place() -> PathBuf {
    cmd::root().join("target/train")
}
