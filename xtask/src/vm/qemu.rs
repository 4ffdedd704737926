//! One start of a kernel in QEMU, and what it says.
//!
//! Emulated, not virtualised: that works on every machine, and in a minute.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use super::archive::Archive;
use super::build::Built;
use super::kernels::Kernel;
use crate::cmd;

const MEBIBYTES: &str = "3072";
const CORES: &str = "2";

/// How it went.
#[derive(Debug)]
pub(crate) struct Session {
    /// What PID 1 and the tests wrote.
    pub(crate) lines: Vec<String>,
    /// What the kernel wrote, warnings and worse.
    pub(crate) console: Vec<String>,
    /// Whether the guest got to its end.
    pub(crate) ended: bool,
    /// From the start of QEMU to its end.
    pub(crate) took: Duration,
}

/// Boots `kernel` on the guest's archive, lets it run the tests of `groups` (see `group::table`), and keeps what it says in `log` too.
pub(crate) fn run(
    kernel: &Kernel,
    guest: &Path,
    built: &Built,
    groups: &str,
    log: &Path,
    limit: Duration,
) -> Result<Session> {
    let dir = cmd::root().join("target/vm");
    let (console, initrd) = (
        dir.join(format!("console-{}", kernel.release)),
        dir.join(format!("initrd-{}", kernel.release)),
    );
    let table = dir.join(format!("groups-{}", kernel.release));
    let mut archive = Archive::default();
    archive.file(Path::new("groups"), 0o644, groups.as_bytes());
    archive.write(&table)?;
    join(&[guest, &kernel.modules, &table], &initrd)?;
    remove(&table)?;
    let mut command = command(kernel, &initrd, &console, &parameters(built)?);
    let started = Instant::now();
    let mut child = command.spawn().context("can't start qemu-system-x86_64")?;
    let lines = read(&mut child)?;
    let mut log = fs::File::create(log).with_context(|| format!("can't write {}", log.display()))?;
    let collected = collect(&lines, &mut log, started, limit);
    // By itself if the guest got to its end.
    if child.try_wait().context("can't wait for QEMU")?.is_none() && collected.is_err() {
        child.kill().context("can't stop QEMU")?;
    }
    child.wait().context("can't wait for QEMU")?;
    remove(&initrd)?;
    let (lines, in_time) = match collected {
        Ok(lines) => (lines, true),
        Err(lines) => (lines, false),
    };
    Ok(Session {
        ended: in_time && lines.iter().any(|line| line.starts_with("@vm end ")),
        lines,
        console: console_of(&console)?,
        took: started.elapsed(),
    })
}

fn console_of(file: &Path) -> Result<Vec<String>> {
    let bytes = fs::read(file).with_context(|| format!("can't read {}", file.display()))?;
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.lines().map(|line| line.trim_end().to_owned()).collect())
}

fn remove(file: &Path) -> Result<()> {
    fs::remove_file(file).with_context(|| format!("can't remove {}", file.display()))
}

fn command(kernel: &Kernel, initrd: &Path, console: &Path, parameters: &str) -> Command {
    let mut command = cmd::command(
        "qemu-system-x86_64",
        [
            "-M",
            "q35",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
            "-m",
            MEBIBYTES,
            "-smp",
            CORES,
            "-display",
            "none",
            "-monitor",
            "none",
            "-no-reboot",
            "-nic",
            "none",
        ],
    );
    command
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(initrd)
        .arg("-append")
        .arg(parameters)
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        .args(["-serial", "stdio"])
        .stdout(Stdio::piped());
    command
}

/// What the kernel is told; it ignores what is PID 1's. Mitigations against a real processor's leaks, and clearing
/// memory, only cost time here.
fn parameters(built: &Built) -> Result<String> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("the clock stands before 1970")?;
    Ok(format!(
        "console=ttyS0 loglevel=5 panic=-1 mitigations=off init_on_alloc=0 vm.agent={} vm.tests={} vm.now={}",
        built.agent.display(),
        built.tests.display(),
        now.as_secs()
    ))
}

/// The kernel takes archives one after another for one.
fn join(parts: &[&Path], into: &Path) -> Result<()> {
    let mut file = fs::File::create(into).with_context(|| format!("can't write {}", into.display()))?;
    for part in parts {
        let mut from = fs::File::open(part).with_context(|| format!("can't read {}", part.display()))?;
        std::io::copy(&mut from, &mut file).with_context(|| format!("can't write {}", into.display()))?;
    }
    Ok(())
}

fn read(child: &mut Child) -> Result<Receiver<String>> {
    let stdout = child.stdout.take().context("QEMU has no standard output")?;
    let (lines, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(stdout);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|size| size > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            if lines.send(text).is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

/// All lines until QEMU ends, kept in `log` as they come; as an error if it does not end in time.
fn collect(
    lines: &Receiver<String>,
    log: &mut fs::File,
    started: Instant,
    limit: Duration,
) -> Result<Vec<String>, Vec<String>> {
    let mut all = Vec::new();
    loop {
        match lines.recv_timeout(limit.saturating_sub(started.elapsed())) {
            Ok(line) => {
                // For whoever looks on, and afterwards; the report does not read it.
                writeln!(log, "{line}").ok();
                all.push(line);
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(all),
            Err(RecvTimeoutError::Timeout) => return Err(all),
        }
    }
}
