//! Source: a helper program, with a timeout and bounded output.
//!
//! The program is run directly, without a shell, with an empty environment but for `PATH`, in a process group of
//! its own that is killed as a whole. What it prints on standard error is thrown away: it could hold the secret.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::os::unix::process::ExitStatusExt as _;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};
use zeroize::Zeroizing;

use crate::rights;

use super::secret::{MAX_LEN, Secret, SecretError};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a helper gives no secret. Only its path and exit status are ever told.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// No program, or one that depends on a search path.
    #[error("`{program}`: a credential helper is named by its absolute path")]
    Relative {
        /// What was given.
        program: String,
    },
    /// It can't be started, or its output can't be read.
    #[error(
        "{program}: the credential helper can't be run: {source}{}",
        super::file::unseen(Path::new(program))
    )]
    Io {
        /// The program.
        program: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It ran too long and was killed.
    #[error("{program}: the credential helper had not ended after {} ms and was killed", timeout.as_millis())]
    Timeout {
        /// The program.
        program: String,
        /// How long it had.
        timeout: Duration,
    },
    /// It says that it failed.
    #[error(
        "{program}: the credential helper ended with {status}; run it by hand to see why, and if it works there, see what callgate.service forbids it (files to write, code made at run time)"
    )]
    Status {
        /// The program.
        program: String,
        /// `exit status N` or `signal N`.
        status: String,
    },
    /// What it printed is no secret.
    #[error("{program}: what the credential helper printed can't be used: {source}")]
    Output {
        /// The program.
        program: String,
        /// What is wrong with it.
        source: SecretError,
    },
}

/// Runs the helper and takes its standard output, less one trailing newline.
///
/// # Errors
/// If it can't be run, runs too long, fails, or prints what can't be a secret.
pub async fn run(command: &[String], timeout: Duration) -> Result<Secret, ExecError> {
    let (program, arguments) = match command.split_first() {
        Some((program, arguments)) if program.starts_with('/') => (program.clone(), arguments),
        first => {
            let program = first.map(|(program, _)| program.clone()).unwrap_or_default();
            return Err(ExecError::Relative { program });
        }
    };
    let mut helper = Command::new(&program);
    helper
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true);
    let spawned = rights::hand_on(rights::TO_READ_SECRETS, || helper.spawn());
    let mut child = spawned.map_err(|source| ExecError::Io {
        program: program.clone(),
        source,
    })?;
    let group = Group::of(&child);
    let ended = tokio::time::timeout(timeout, output(&mut child)).await;
    drop(group);
    let Ok(ended) = ended else {
        return Err(ExecError::Timeout { program, timeout });
    };
    let (mut bytes, status) = ended.map_err(|source| ExecError::Io {
        program: program.clone(),
        source,
    })?;
    if let Some(status) = status.filter(|status| !status.success()) {
        let status = describe(status);
        return Err(ExecError::Status { program, status });
    }
    Secret::from_line(std::mem::take(&mut *bytes)).map_err(|source| ExecError::Output { program, source })
}

/// Reads until the helper closes its output and ends, or has printed too much: then its end is not waited for, and
/// [`Secret`] refuses what it printed.
async fn output(child: &mut Child) -> std::io::Result<(Zeroizing<Vec<u8>>, Option<ExitStatus>)> {
    const MOST: usize = MAX_LEN + 3;
    let mut bytes = Zeroizing::new(vec![0; MOST]);
    let mut filled = 0;
    if let Some(mut stdout) = child.stdout.take() {
        while filled < MOST {
            match stdout.read(&mut bytes[filled..]).await? {
                0 => break,
                count => filled += count,
            }
        }
    }
    bytes.truncate(filled);
    if filled == MOST {
        return Ok((bytes, None));
    }
    let status = child.wait().await?;
    Ok((bytes, Some(status)))
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown status".to_owned(),
    }
}

/// The helper's process group; killed when this is dropped, so also when the caller's future is, with whatever
/// the helper left running in it.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(
            child
                .id()
                .and_then(|id| i32::try_from(id).ok())
                .map(Pid::from_raw),
        )
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let Some(group) = self.0 else { return };
        match killpg(group, Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => tracing::warn!(%group, %error, "a credential helper's processes can't be killed"),
        }
    }
}

#[cfg(test)]
mod tests;
