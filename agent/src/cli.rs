//! The command line: one function per subcommand, and the exit codes.
//!
//! | code | means |
//! |---|---|
//! | 0 | good |
//! | 1 | the answer is no: denied, not running as it should, a reload refused, the agent refuses |
//! | 2 | wrong usage or input |
//! | 3 | the environment lacks something |

pub mod audit;
pub mod canary;
pub mod check;
pub mod doctor;
pub mod enable;
pub mod exec;
pub mod explain;
pub mod prepare;
pub mod release;
pub mod reload;
pub mod run;
mod safe;
pub mod status;
pub mod worker;

use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand};

use crate::admin::client;
use crate::config::{Config, DEFAULT_PATH};
use crate::policy::{Diagnostic, Source};

/// The answer is no.
pub const NO: u8 = 1;
/// Wrong usage or input.
pub const WRONG: u8 = 2;
/// The environment lacks something.
pub const LACKING: u8 = 3;

/// Transparent, least-privilege API calls: checks each call and puts the credential on
#[derive(Debug, Parser)]
#[command(
    name = "callgate",
    version,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 good, 1 the answer is no, 2 wrong usage or input, 3 the environment lacks something."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// Where the settings are.
#[derive(Clone, Debug, clap::Args)]
pub struct Settings {
    /// The agent's settings
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    pub config: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent
    Run {
        #[command(flatten)]
        settings: Settings,
        /// Go on as this user, with the same capabilities
        #[arg(long, value_name = "NAME")]
        user: Option<String>,
    },
    /// Run a command as a workload
    Exec {
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        args: exec::Args,
    },
    /// Make a systemd service a workload, or a part of one
    #[command(after_long_help = enable::CONTAINERS)]
    Enable {
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        args: enable::Args,
    },
    /// Make a systemd service an ordinary one again
    Disable(enable::DisableArgs),
    /// Show every error in settings and policy
    Check(check::CheckArgs),
    /// Show the decision on a call, and why
    Explain(Box<explain::ExplainArgs>),
    /// Show what runs
    Status {
        #[command(flatten)]
        settings: Settings,
        /// One JSON document
        #[arg(long)]
        json: bool,
    },
    /// Put the changed policy in force
    Reload(Settings),
    /// Let workloads go: they are managed no more
    Release {
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        args: release::Args,
    },
    /// Follow and show the records
    Audit(audit::AuditArgs),
    /// Show what this host lacks, and the fix
    #[command(after_help = doctor::LOOKED_AT)]
    Doctor {
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        args: doctor::Args,
    },
    /// Mounts and makes what the confined agent can't; started by the unit before `run`
    #[command(hide = true)]
    Prepare(Settings),
    /// The unprivileged half; started by `run`
    #[command(hide = true)]
    Worker(worker::Args),
    /// One connect from inside a workload; started by `run`
    #[command(hide = true)]
    Canary(canary::Place),
    /// Makes what an ordinary user's command runs in; started by `doctor`
    #[command(hide = true)]
    View,
}

/// The command line, for man pages and shell completions.
#[must_use]
pub fn definition() -> clap::Command {
    Cli::command()
}

/// Parses the arguments and runs the subcommand.
#[must_use]
pub fn main() -> ExitCode {
    let command = Cli::parse().command;
    match dispatch(command) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&causes(&error));
            ExitCode::from(if is_refusal(&error) { NO } else { LACKING })
        }
    }
}

fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    let (out, styled) = (&mut io::stdout().lock(), io::stdout().is_terminal());
    match command {
        Command::Run { settings, user } => run::run(&settings.config, user.as_deref()),
        Command::Exec { settings, args } => {
            let Some(config) = load(&settings.config)? else {
                return Ok(ExitCode::from(WRONG));
            };
            exec::run(&args, |workload| exec::enrol(&config.admin_socket, workload))
        }
        Command::Enable { settings, args } => {
            let Some(config) = load(&settings.config)? else {
                return Ok(ExitCode::from(WRONG));
            };
            enable::run(&args, &config, out)
        }
        Command::Disable(args) => enable::disable(&args, out),
        Command::Check(args) => Ok(check::run(&args, out, styled)?),
        Command::Explain(args) => Ok(explain::run(&args, out, &mut io::stderr().lock())?),
        Command::Status { settings, json } => {
            let Some(config) = load(&settings.config)? else {
                return Ok(ExitCode::from(WRONG));
            };
            status::run(&config.admin_socket, json, out)
        }
        Command::Reload(settings) => {
            let Some(config) = load(&settings.config)? else {
                return Ok(ExitCode::from(WRONG));
            };
            reload::run(&config, out)
        }
        Command::Release { settings, args } if args.all => {
            release::run(&args, &load_readable(&settings.config), out)
        }
        Command::Release { settings, args } => {
            let Some(config) = load(&settings.config)? else {
                return Ok(ExitCode::from(WRONG));
            };
            release::run(&args, &config, out)
        }
        Command::Audit(args) => audit::run(&args, |path| Ok(load(path)?.map(|config| config.audit.file))),
        Command::Doctor { settings, args } => {
            let Some(config) = load(&settings.config)? else {
                return Ok(ExitCode::from(WRONG));
            };
            doctor::run(args, &config, doctor::kernel_checks())
        }
        Command::Prepare(settings) => prepare::run(&settings.config),
        Command::Worker(args) => worker::run(&args),
        Command::Canary(args) => canary::run(args),
        Command::View => doctor::view(),
    }
}

/// The settings; `None` after their errors were shown.
fn load(path: &Path) -> anyhow::Result<Option<Config>> {
    match Config::load(path) {
        Ok((config, _source)) => Ok(Some(config)),
        Err(faulty) => {
            show(&faulty.found, &[faulty.source]);
            complain("the settings have errors");
            Ok(None)
        }
    }
}

/// What can be read of the settings, and the defaults for the rest: for what must also be possible with faulty ones, as
/// letting go of all that is held when the package is removed.
fn load_readable(path: &Path) -> Config {
    match Config::load(path) {
        Ok((config, _source)) => config,
        Err(faulty) => {
            show(&faulty.found, &[faulty.source]);
            let config = *faulty.readable;
            complain(&format!(
                "the settings have errors: going on with what can be read of them (cgroup_parent {:?}, bpffs_dir {}, state_dir {}, runtime_dir {})",
                config.cgroup_parent,
                config.bpffs_dir.display(),
                config.state_dir.display(),
                config.runtime_dir.display()
            ));
            config
        }
    }
}

/// Draws findings on standard error.
fn show(found: &[Diagnostic], sources: &[Source]) {
    use std::io::Write as _;
    let styled = io::stderr().is_terminal();
    // There is nowhere left to say that standard error is closed.
    write!(io::stderr().lock(), "{}", check::render(found, sources, styled)).ok();
}

/// An error with its causes, each said once: many messages hold the text of their cause already.
fn causes(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |said, cause| {
        let cause = cause.to_string();
        if said.is_empty() {
            cause
        } else if said.contains(&cause) {
            said
        } else {
            format!("{said}: {cause}")
        }
    })
}

/// Whoever reads our output (`head`, `less`) has seen enough.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

/// The agent answered, and its answer is no.
fn is_refusal(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(client::Error::Refused(_)))
}

fn complain(text: &str) {
    use std::io::Write as _;
    // There is nowhere left to say that standard error is closed.
    writeln!(io::stderr().lock(), "callgate: {text}").ok();
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(48)
        .build()
        .context("can't set up the runtime")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_a_message_holds_already_is_not_said_again() {
        let error = anyhow::anyhow!("no such file").context("can't read x: no such file");
        assert_eq!(causes(&error), "can't read x: no such file");
        assert_eq!(
            causes(&error.context("check")),
            "check: can't read x: no such file"
        );
    }
}
