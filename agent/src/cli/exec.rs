//! `callgate exec`: runs a command as a workload.
//!
//! This process asks the agent to move it into the workload's cgroup, waits for the answer, gives up what
//! could lead around the agent, and becomes the command. So the command is captured from its first
//! instruction, and its exit code is the command's own.

mod calls;
mod confine;
mod isolate;
mod namespaces;
mod temporary;

pub(super) use namespaces::{FIX as USER_NAMESPACES, enter_as_user as try_as_user};

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, anyhow};

use crate::admin;
use crate::enroll::trust::JAVA_OPTIONS;
use crate::identity::WorkloadName;

/// The shell's code for "found, but can't be run".
const CANNOT_RUN: u8 = 126;
/// The shell's code for "not found".
const NOT_FOUND: u8 = 127;

/// Variables that lead to programs of the session that `exec` is started in, which would run things outside for
/// whoever asks. That they are gone keeps honest programs from asking by mistake; it stops nobody.
const SESSION: &[&str] = &[
    "ALACRITTY_SOCKET",
    "DBUS_SESSION_BUS_ADDRESS",
    "DBUS_SYSTEM_BUS_ADDRESS",
    "DISPLAY",
    "DOCKER_HOST",
    "GPG_AGENT_INFO",
    "I3SOCK",
    "KITTY_LISTEN_ON",
    "NVIM",
    "NVIM_LISTEN_ADDRESS",
    "SSH_AGENT_PID",
    "SSH_AUTH_SOCK",
    "STY",
    "SWAYSOCK",
    "TMUX",
    "TMUX_PANE",
    "VSCODE_GIT_IPC_HANDLE",
    "VSCODE_IPC_HOOK_CLI",
    "WAYLAND_DISPLAY",
    "WEZTERM_UNIX_SOCKET",
    "XAUTHORITY",
    "XDG_RUNTIME_DIR",
    "ZELLIJ",
];

/// What the command line gives.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The workload whose rules apply
    #[arg(long, short, value_name = "NAME", value_parser = parse_workload)]
    pub workload: WorkloadName,
    /// Run as this user (name or number); only root may
    #[arg(long, short, value_name = "USER")]
    pub user: Option<String>,
    /// Let the command share /tmp and /var/tmp, with the sockets of terminals and editors that are in them
    #[arg(long)]
    pub shared_tmp: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// For clap.
pub(super) fn parse_workload(text: &str) -> Result<WorkloadName, crate::identity::WorkloadNameError> {
    WorkloadName::parse(text)
}

/// The agent's answer once this process is in the workload's cgroup.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Enrolled {
    /// Variables to set for the command: where the merged bundle of roots is.
    pub env: Vec<(String, String)>,
    /// What the command must not read: secrets, the CA's key, records.
    pub hidden: Vec<PathBuf>,
    /// What it must not change: the policy.
    pub fixed: Vec<PathBuf>,
    /// Directories that it is to see in the place of others: the roots to trust.
    pub over: Vec<(PathBuf, PathBuf)>,
}

/// Runs the command. `enrol` asks the agent to move this process and returns when it has.
///
/// Returns only if the command couldn't be started; 127 if it isn't there and 126 if it can't be run.
///
/// # Errors
/// If the user is unknown, the agent refuses, or the kernel can't confine the process.
pub fn run(
    args: &Args,
    enrol: impl FnOnce(&WorkloadName) -> anyhow::Result<Enrolled>,
) -> anyhow::Result<ExitCode> {
    let user = args.user.as_deref().map(confine::User::find).transpose()?;
    let (program, arguments) = args
        .command
        .split_first()
        .ok_or_else(|| anyhow!("no command was given"))?;
    isolate::refuse_open_ways()?;
    let enrolled = enrol(&args.workload)?;
    confine::close_descriptors().context("can't close inherited descriptors")?;
    let temporary = if args.shared_tmp {
        temporary::Temporary::Shared
    } else {
        temporary::Temporary::Private
    };
    isolate::isolate(&enrolled, temporary)?;
    let mut command = Command::new(program);
    command.args(arguments).envs(enrolled.env.into_iter().map(added));
    for variable in SESSION {
        command.env_remove(variable);
    }
    match &user {
        Some(user) => {
            user.become_it()?;
            command.envs(user.env());
        }
        None => warn_of_root()?,
    }
    confine::confine()?;
    let error = command.exec();
    say(&format!("{}: {error}", program.to_string_lossy()))?;
    Ok(ExitCode::from(code_of(&error)))
}

/// Asks the agent to move this process into the workload.
///
/// # Errors
/// If the agent can't be asked, or refuses.
pub fn enrol(socket: &Path, workload: &WorkloadName) -> anyhow::Result<Enrolled> {
    let asked = admin::Enroll {
        workload: workload.to_string(),
    };
    let enrolled: admin::Enrolled =
        admin::client::ask(socket, "POST", "/v1/enroll", serde_json::to_vec(&asked)?)?;
    Ok(Enrolled {
        env: enrolled.env,
        hidden: enrolled.hidden,
        fixed: enrolled.fixed,
        over: enrolled.over,
    })
}

/// Java's options are added to those that are set; of two that say the same, the last holds.
fn added((name, value): (String, String)) -> (String, OsString) {
    match std::env::var_os(&name) {
        Some(mut options) if name == JAVA_OPTIONS => {
            options.push(" ");
            options.push(value);
            (name, options)
        }
        _ => (name, value.into()),
    }
}

fn code_of(error: &io::Error) -> u8 {
    if error.kind() == io::ErrorKind::NotFound {
        NOT_FOUND
    } else {
        CANNOT_RUN
    }
}

/// The files and devices of the host belong to user 0, whatever capabilities it gave up.
fn warn_of_root() -> anyhow::Result<()> {
    if nix::unistd::geteuid().is_root() {
        say(
            "the command runs as root, which owns the host's files and devices; use --user to keep it from them",
        )?;
    }
    Ok(())
}

fn say(text: &str) -> anyhow::Result<()> {
    writeln!(io::stderr().lock(), "callgate exec: {text}").context("can't write to standard error")
}

#[cfg(test)]
mod tests;
