//! The real agent: `callgate run`, started, reloaded, stopped and killed as an operator or a fault would.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::keeper::Keeper;
use crate::launch::{self, Output, Place};
use crate::notify::NotifySocket;
use crate::wait;

/// The variable that names the agent's binary; `cargo xtask test` and `demo` set it, because cargo tells a test
/// only about binaries of its own package.
pub const BINARY_VARIABLE: &str = "CALLGATE_BIN";

const READY_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// The binary under test.
///
/// # Errors
/// If `CALLGATE_BIN` does not name a file.
pub fn binary() -> Result<PathBuf> {
    let path = std::env::var_os(BINARY_VARIABLE)
        .map(PathBuf::from)
        .with_context(|| format!("{BINARY_VARIABLE} is not set; run `cargo xtask test`"))?;
    if !path.is_file() {
        bail!("{BINARY_VARIABLE}={} is no file", path.display());
    }
    Ok(path)
}

/// Runs `callgate VERB --config FILE ARGS` in `place` to its end.
///
/// # Errors
/// If it can't be started or takes too long; not if it fails.
pub fn command(place: &Place, config: &Path, verb: &str, args: &[&str]) -> Result<Output> {
    let binary = binary()?;
    let fixed: [&OsStr; 4] = [
        binary.as_ref(),
        verb.as_ref(),
        "--config".as_ref(),
        config.as_ref(),
    ];
    place.run(fixed.into_iter().chain(args.iter().map(AsRef::as_ref)))
}

/// A running `callgate run`.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    config: PathBuf,
    log: PathBuf,
    place: Place,
}

impl Agent {
    /// Starts the agent in `place`, with what `keeper` has kept of the last run, and waits until it says that it is ready.
    ///
    /// # Errors
    /// If it ends, or isn't ready in time; with what it logged.
    pub fn start(place: &Place, config: &Path, dir: &Path, keeper: Option<&Keeper>) -> Result<Self> {
        let Some(keeper) = keeper else {
            let notify = NotifySocket::bind(&dir.join("upstream/notify"))?;
            let place = place.clone().with_env("NOTIFY_SOCKET", notify.path());
            let mut agent = Self::spawn(place, config, dir, Vec::new(), Stdio::null())?;
            agent.wait_ready(|| notify.is_ready())?;
            return Ok(agent);
        };
        let with = |place: Place, (key, value): (OsString, OsString)| place.with_env(key, value);
        let place = keeper.environment().into_iter().fold(place.clone(), with);
        let (prefix, passed) = keeper.pass()?;
        let mut agent = Self::spawn(place, config, dir, prefix, passed.into())?;
        agent.wait_ready(|| keeper.is_ready())?;
        Ok(agent)
    }

    fn spawn(place: Place, config: &Path, dir: &Path, prefix: Vec<OsString>, stdin: Stdio) -> Result<Self> {
        let log = dir.join("agent.log");
        let stderr = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .context("can't open the agent's log")?;
        let agent = [
            binary()?.into_os_string(),
            "run".into(),
            "--config".into(),
            config.into(),
        ];
        let mut command = place.command(prefix.into_iter().chain(agent));
        let stdout = stderr.try_clone().context("can't share the agent's log")?;
        let child = command
            .stdin(stdin)
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .context("can't start the agent")?;
        Ok(Self {
            child,
            config: config.to_owned(),
            log,
            place,
        })
    }

    /// The supervisor's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All that the agent has written to standard output and error since the world began.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Runs `callgate VERB --config FILE ARGS` beside the agent (same cgroup, same namespaces).
    ///
    /// # Errors
    /// If it can't be started or takes too long; not if it fails.
    pub fn command(&self, verb: &str, args: &[&str]) -> Result<Output> {
        command(&self.place, &self.config, verb, args)
    }

    /// `callgate reload`.
    ///
    /// # Errors
    /// If the agent refuses, with its reason.
    pub fn reload(&self) -> Result<()> {
        self.command("reload", &[])?.ok().context("callgate reload")?;
        Ok(())
    }

    /// Sends a signal to the supervisor.
    ///
    /// # Errors
    /// If it is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(pid(&self.child)?, signal).with_context(|| format!("can't send {signal} to the agent"))
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// If it doesn't end in time or with another status than success.
    pub fn stop(mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        let status = launch::wait_for(&mut self.child, STOP_LIMIT).context("the agent does not stop")?;
        if !status.success() {
            bail!("the agent ended with {status}:\n{}", self.log());
        }
        Ok(())
    }

    /// SIGKILL, and waits for the end.
    ///
    /// # Errors
    /// If it was gone already.
    pub fn kill(mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        launch::wait_for(&mut self.child, STOP_LIMIT).map(drop)
    }

    fn wait_ready(&mut self, is_ready: impl Fn() -> bool) -> Result<()> {
        let child = &mut self.child;
        let outcome = wait::until("the agent is ready", READY_LIMIT, || {
            if let Ok(Some(status)) = child.try_wait() {
                return Some(Err(anyhow!("the agent ended with {status}")));
            }
            is_ready().then_some(Ok(()))
        });
        outcome
            .and_then(|outcome| outcome)
            .with_context(|| format!("the agent's log:\n{}", self.log()))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // The gentle way first, so that what the agent itself cleans up is cleaned up.
            drop(self.signal(Signal::SIGTERM));
            if launch::wait_for(&mut self.child, STOP_LIMIT).is_err() {
                drop(self.child.kill());
                drop(self.child.wait());
            }
        }
    }
}

fn pid(child: &Child) -> Result<Pid> {
    let raw = i32::try_from(child.id()).context("a process id over i32::MAX")?;
    Ok(Pid::from_raw(raw))
}
