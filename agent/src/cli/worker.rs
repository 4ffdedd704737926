//! `callgate worker`: the unprivileged half, started by the supervisor with the channel as standard input.

use std::process::ExitCode;

use anyhow::Context as _;

use crate::config::LogLevel;
use crate::supervisor::sandbox::{self, Unprivileged};
use crate::{telemetry, worker};

/// Who to become.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct User {
    /// User id
    #[arg(long)]
    pub uid: u32,
    /// Group id
    #[arg(long)]
    pub gid: u32,
}

impl From<User> for Unprivileged {
    fn from(User { uid, gid }: User) -> Self {
        Self { uid, gid }
    }
}

/// Who to become, and what to say.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Args {
    /// Who to become
    #[command(flatten)]
    pub user: User,
    /// What the log shows
    #[arg(long, value_parser = parse_level)]
    pub log_level: LogLevel,
}

fn parse_level(text: &str) -> Result<LogLevel, String> {
    let named = LogLevel::ALL.into_iter().find(|level| level.as_str() == text);
    named.ok_or_else(|| format!("there is no log level {text:?}"))
}

/// Gives everything up, then works until the channel ends.
///
/// # Errors
/// If the process can't be confined, or the worker can't go on.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    telemetry::init(args.log_level.as_str(), telemetry::destination())?;
    let channel = sandbox::take_channel()?;
    sandbox::enter(args.user.into(), &channel)?;
    worker::run(channel).context("the worker can't go on")?;
    Ok(ExitCode::SUCCESS)
}
