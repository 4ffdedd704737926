//! Starting processes where a test wants them: in a cgroup, in a network namespace, as a user, and never
//! outliving the thread that started them.
//!
//! The placing is done by the ordinary tools (`sh`, `nsenter`, `setpriv`), each of which execs the next, so that
//! the process that remains is the one asked for and has been in its cgroup since its first instruction.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use crate::wait;

/// How long a client may run.
pub const CLIENT_LIMIT: Duration = Duration::from_secs(30);

/// Where and as whom to start a process.
#[derive(Clone, Debug)]
pub struct Place {
    cgroup: PathBuf,
    netns: Option<PathBuf>,
    uid: Option<u32>,
    env: Vec<(OsString, OsString)>,
    view: Option<String>,
}

impl Place {
    /// In this cgroup directory, else as the caller.
    #[must_use]
    pub fn in_cgroup(cgroup: impl Into<PathBuf>) -> Self {
        Self {
            cgroup: cgroup.into(),
            netns: None,
            uid: None,
            env: Vec::new(),
            view: None,
        }
    }

    /// Also in the network namespace that this file stands for.
    #[must_use]
    pub fn in_netns(mut self, file: impl Into<PathBuf>) -> Self {
        self.netns = Some(file.into());
        self
    }

    /// As this user and the group of the same number, without supplementary groups.
    #[must_use]
    pub fn as_user(mut self, uid: u32) -> Self {
        self.uid = Some(uid);
        self
    }

    /// With this variable.
    #[must_use]
    pub fn with_env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((key.into(), value.into()));
        self
    }

    /// In a mount namespace of its own, in which this shell script ran first.
    #[must_use]
    pub fn with_view(mut self, script: impl Into<String>) -> Self {
        self.view = Some(script.into());
        self
    }

    /// The command that starts `args` here. The child dies with the thread that spawns it, so spawn long-lived
    /// ones from the test's own thread.
    #[must_use]
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", r#"echo 0 > "$0" && exec "$@""#])
            .arg(self.cgroup.join("cgroup.procs"));
        if let Some(netns) = &self.netns {
            let mut option = OsString::from("--net=");
            option.push(netns);
            command.arg("nsenter").arg(option);
        }
        command.arg("setpriv");
        if let Some(uid) = self.uid {
            command.args([
                format!("--reuid={uid}"),
                format!("--regid={uid}"),
                "--clear-groups".to_owned(),
            ]);
        }
        command.args(["--pdeathsig", "KILL", "--"]);
        if let Some(script) = &self.view {
            let script = format!("{script}\nexec \"$@\"");
            command.args(["unshare", "--mount", "--propagation", "private"]);
            command.args(["sh", "-ec", &script, "sh"]);
        }
        command.args(args);
        command.envs(self.env.iter().cloned()).stdin(Stdio::null());
        command
    }

    /// Runs `args` here to its end.
    ///
    /// # Errors
    /// If it can't be started, or runs longer than [`CLIENT_LIMIT`] (it is killed then).
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Output> {
        finish(self.command(args))
    }
}

/// How a process ended and what it wrote.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit status.
    pub status: ExitStatus,
    /// Standard output, with invalid UTF-8 replaced.
    pub stdout: String,
    /// Standard error, with invalid UTF-8 replaced.
    pub stderr: String,
}

impl Output {
    /// The exit code; `None` after a signal.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Standard output, if the process ended well.
    ///
    /// # Errors
    /// Otherwise, with its status and what it wrote.
    pub fn ok(self) -> Result<String> {
        if self.status.success() {
            return Ok(self.stdout);
        }
        Err(anyhow!("{}: {}{}", self.status, self.stdout, self.stderr))
    }
}

/// Runs a prepared command to its end, within [`CLIENT_LIMIT`].
///
/// # Errors
/// If it can't be started or doesn't end in time.
pub fn finish(mut command: Command) -> Result<Output> {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.with_context(|| format!("can't start {command:?}"))?;
    let (stdout, stderr) = (drain(child.stdout.take()), drain(child.stderr.take()));
    let ended = wait_for(&mut child, CLIENT_LIMIT);
    if ended.is_err() {
        child.kill().context("can't kill a client that ran too long")?;
        child.wait().context("can't wait for a killed client")?;
    }
    let text = |reader: thread::JoinHandle<String>| {
        reader
            .join()
            .map_err(|_panic| anyhow!("a reader thread panicked"))
    };
    let (stdout, stderr) = (text(stdout)?, text(stderr)?);
    let status = ended.with_context(|| format!("{command:?} wrote: {stdout}{stderr}"))?;
    Ok(Output {
        status,
        stdout,
        stderr,
    })
}

/// Waits for a child's end.
///
/// # Errors
/// If it still runs after `limit`.
pub fn wait_for(child: &mut Child, limit: Duration) -> Result<ExitStatus> {
    wait::until("the process's end", limit, || child.try_wait().transpose())?
        .context("can't wait for a child")
}

/// Runs a tool of the set-up itself (`ip`, `nginx -t`, ...) with text on its standard input.
///
/// # Errors
/// If it can't be started or fails, with what it wrote.
pub fn tool<S: AsRef<OsStr>>(program: &Path, args: impl IntoIterator<Item = S>) -> Result<String> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null());
    let output = finish(command)?;
    output
        .ok()
        .with_context(|| format!("{} failed", program.display()))
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // A pipe that breaks gives what came before; the exit status tells the rest.
            drop(pipe.read_to_end(&mut bytes));
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
