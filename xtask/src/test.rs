//! `cargo xtask test`: builds and runs every test that this machine can run, and counts them.

mod bed;
mod tally;
mod times;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use crate::cmd::{self, Outcome};
use crate::dist::{self, Profile};
use crate::{setup, vm};

pub(crate) use tally::{Bed, Ran, Tally};
use times::Times;

/// Runs the tests, says how long each bed took, and ends with the closing line.
pub(crate) fn run(filter: Option<&str>) -> Result<Outcome> {
    Ok(close(&all(filter)?))
}

/// The same, with those that take long.
pub(crate) fn run_with_long_ones() -> Result<Outcome> {
    let mut ran = all(None)?;
    if cmd::is_root() {
        let command = only_ignored(end_to_end(None)?);
        let agent = build("callgate", "callgate")?;
        ran.beds
            .push(bed("end to end, what takes long", command, &agent)?);
        ran.beds.push(of_release(&agent)?);
    }
    let kernels = vm::all(&vm::Arguments::default())?;
    ran.beds.extend(kernels.beds);
    let lacks = [ran.outcome, kernels.outcome].contains(&Outcome::Lacking);
    let otherwise = if lacks { Outcome::Lacking } else { Outcome::Good };
    Ok(close(&Ran::judged(ran.beds, otherwise)))
}

fn close(ran: &Ran) -> Outcome {
    for bed in &ran.beds {
        println!("{bed}");
    }
    println!("{}", ran.tally());
    ran.outcome
}

/// Runs the tests.
pub(crate) fn all(filter: Option<&str>) -> Result<Ran> {
    setup::all()?;
    let agent = build("callgate", "callgate")?;
    let packages = ["-p", "callgate", "-p", "callgate-common", "-p", "xtask"];
    let mut beds = vec![
        bed("unit tests", suite(&packages, filter), &agent)?,
        bed("examples in the documentation", documentation(filter), &agent)?,
    ];
    if cmd::is_root() {
        let name = "end to end, in namespaces and booted Debians";
        beds.push(bed(name, end_to_end(filter)?, &agent)?);
        return Ok(Ran::judged(beds, Outcome::Good));
    }
    // What needs no root among them (the harness's own tests) runs all the same.
    let harness = suite(&["-p", "callgate-tests", "--lib", "--bins"], filter);
    let mut harness = bed("end to end, without root", harness, &agent)?;
    harness.tally.skipped += count_end_to_end(filter)?;
    beds.push(harness);
    eprintln!("test: the end-to-end tests need root (BPF, cgroups, namespaces): sudo cargo xtask test");
    Ok(Ran::judged(beds, Outcome::Lacking))
}

/// Runs one suite.
fn bed(name: &str, mut command: Command, agent: &Path) -> Result<Bed> {
    let (started, skips, boots) = (Instant::now(), Notes::new("skips")?, Notes::new("boots")?);
    command
        .env("CALLGATE_BIN", agent)
        .env("CALLGATE_SKIP_FILE", &skips.0)
        .env("CALLGATE_BOOT_FILE", &boots.0);
    let Heard { mut tally, times } = measure(command)?;
    let (skips, booted) = (skips.read()?, boots.read()?);
    for line in skips.lines() {
        eprintln!("test: skipped: {line}");
    }
    tally.move_to_skipped(skips.lines().map(|_| 1).sum());
    let booted: BTreeSet<_> = booted.lines().map(ToOwned::to_owned).collect();
    Ok(Bed {
        name: name.to_owned(),
        took: started.elapsed(),
        tally,
        places: times.places(&booted),
    })
}

/// The end-to-end tests, with what they boot and install.
fn end_to_end(filter: Option<&str>) -> Result<Command> {
    let mut command = suite(&["-p", "callgate-tests"], filter);
    command
        .env("CALLGATE_BED", bed::debian()?)
        .envs(bed::runtimes(filter)?.map(|dir| ("CALLGATE_BED_RUNTIMES", dir)))
        .envs(bed::containers(filter)?.map(|dir| ("CALLGATE_BED_CONTAINERS", dir)))
        .env("CALLGATE_DEB", dist::package(Profile::Dev, dist::VERSION)?)
        .env("CALLGATE_DEB_NEXT", dist::package(Profile::Dev, dist::NEXT)?);
    Ok(command)
}

/// The package that hosts get, optimised, on booted Debians.
fn of_release(agent: &Path) -> Result<Bed> {
    let mut command = end_to_end(Some("installed"))?;
    command
        .env("CALLGATE_DEB", dist::package(Profile::Release, dist::VERSION)?)
        .env("CALLGATE_DEB_NEXT", dist::package(Profile::Release, dist::NEXT)?);
    bed("end to end, the released package", command, agent)
}

/// Those that are ignored since they take long.
fn only_ignored(mut command: Command) -> Command {
    if cmd::find("cargo-nextest").is_some() {
        command.args(["--run-ignored", "only"]);
    } else {
        command.args(["--", "--ignored"]);
    }
    command
}

/// Builds one binary for tests and says where it is.
pub(crate) fn build(package: &str, binary: &str) -> Result<PathBuf> {
    built(cmd::cargo(["build", "-p", package, "--bin", binary]), binary)
}

/// Runs cargo and says where the binary is that it built.
pub(crate) fn built(command: Command, binary: &str) -> Result<PathBuf> {
    find(&messages(command, &[])?, binary)
}

/// Builds the agent without optimisation, linked with nothing: only the last step differs, so this takes seconds.
pub(crate) fn build_static() -> Result<PathBuf> {
    let command = cmd::cargo(["rustc", "-p", "callgate", "--bin", "callgate"]);
    let linked = ["--", "-C", "target-feature=+crt-static"];
    find(&messages(command, &linked)?, "callgate")
}

/// Builds the end-to-end tests and the client that they start; says where both are.
pub(crate) fn build_end_to_end() -> Result<(PathBuf, PathBuf)> {
    let command = cmd::cargo(["test", "-p", "callgate-tests", "--test", "e2e", "--no-run"]);
    let text = messages(command, &[])?;
    Ok((find(&text, "e2e")?, find(&text, "probe")?))
}

/// What cargo says of each thing that it builds; `last` are arguments that come after all others.
fn messages(command: Command, last: &[&str]) -> Result<String> {
    let mut command = setup::prepare(command);
    command
        .args(["--message-format", "json-render-diagnostics"])
        .args(last)
        .stderr(Stdio::inherit());
    cmd::show(&command);
    let output = command.output().context("can't start cargo")?;
    if !output.status.success() {
        bail!("it does not build");
    }
    String::from_utf8(output.stdout).context("cargo's messages")
}

fn find(messages: &str, binary: &str) -> Result<PathBuf> {
    messages
        .lines()
        .find_map(|line| artifact(line, binary))
        .with_context(|| format!("cargo built no {binary}"))
}

/// The executable in one of cargo's messages, if it is the one of this name.
fn artifact(line: &str, binary: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(line).ok()?;
    let path = PathBuf::from(message.get("executable")?.as_str()?);
    (message.get("target")?.get("name")? == binary).then_some(path)
}

/// nextest, where there is one, runs each test in a process of its own; cargo's own runner needs no more care,
/// since a world belongs to a thread.
fn suite(packages: &[&str], filter: Option<&str>) -> Command {
    let mut command = if cmd::find("cargo-nextest").is_some() {
        cmd::cargo([
            "nextest",
            "run",
            "--no-fail-fast",
            "--no-tests",
            "pass",
            "--color",
            "never",
        ])
    } else {
        cmd::cargo(["test", "--no-fail-fast", "--all-targets"])
    };
    command.args(packages).args(filter);
    quiet(command)
}

/// The examples in the documentation, which nextest does not run.
fn documentation(filter: Option<&str>) -> Command {
    let mut command = cmd::cargo([
        "test",
        "--doc",
        "--no-fail-fast",
        "-p",
        "callgate",
        "-p",
        "callgate-common",
    ]);
    command.args(filter);
    quiet(command)
}

fn quiet(mut command: Command) -> Command {
    command
        .env("CARGO_TERM_COLOR", "never")
        .env("RUST_BACKTRACE", "0");
    setup::prepare(command)
}

/// How many tests are left out without root.
fn count_end_to_end(filter: Option<&str>) -> Result<u64> {
    let mut command = quiet(cmd::cargo(["test", "-p", "callgate-tests", "--test", "e2e"]));
    command.args(filter).args(["--", "--list"]);
    let listing = cmd::read(command).context("the end-to-end tests do not build")?;
    Ok(listing
        .lines()
        .filter(|line| line.ends_with(": test"))
        .map(|_| 1)
        .sum())
}

/// What a suite wrote.
#[derive(Debug, Default)]
struct Heard {
    tally: Tally,
    times: Times,
}

/// Runs one suite, passes on what it writes and counts. A suite that fails without a failed test (it does not
/// build, it crashed) counts as one.
fn measure(mut command: Command) -> Result<Heard> {
    cmd::show(&command);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("can't start the tests")?;
    let stdout = child.stdout.take().context("no standard output")?;
    let stderr = child.stderr.take().context("no standard error")?;
    let other = thread::spawn(move || hear(stderr, std::io::stderr()));
    let mut heard = hear(stdout, std::io::stdout())?;
    let other = other
        .join()
        .map_err(|_panic| anyhow!("the reader of standard error panicked"))??;
    heard.tally.add(other.tally);
    heard.times.add(other.times);
    let status = child.wait().context("can't wait for the tests")?;
    if !status.success() && heard.tally.failed == 0 {
        eprintln!("test: {status}, although no test failed");
        heard.tally.failed = 1;
    }
    Ok(heard)
}

fn hear(from: impl Read, mut to: impl Write) -> Result<Heard> {
    let mut heard = Heard::default();
    let mut reader = BufReader::new(from);
    let mut line = Vec::new();
    while reader
        .read_until(b'\n', &mut line)
        .context("can't read what the tests write")?
        > 0
    {
        to.write_all(&line)
            .context("can't pass on what the tests write")?;
        let text = String::from_utf8_lossy(&line);
        heard.tally.read(&text);
        heard.times.read(&text);
        line.clear();
    }
    Ok(heard)
}

/// A file in which tests leave lines for us.
struct Notes(PathBuf);

impl Notes {
    fn new(kind: &str) -> Result<Self> {
        let file = std::env::temp_dir().join(format!("callgate-{kind}-{}", std::process::id()));
        fs::write(&file, "").with_context(|| format!("can't write {}", file.display()))?;
        Ok(Self(file))
    }

    fn read(&self) -> Result<String> {
        fs::read_to_string(&self.0).with_context(|| format!("can't read {}", self.0.display()))
    }
}

impl Drop for Notes {
    fn drop(&mut self) {
        // Only a note; a left one is no harm.
        fs::remove_file(&self.0).ok();
    }
}
