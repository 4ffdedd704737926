//! `callgate worker`: the unprivileged half, started by the supervisor with the channel as standard input.

use std::process::ExitCode;

use anyhow::Context as _;

use crate::supervisor::sandbox::{self, Unprivileged};
use crate::{telemetry, worker};

/// Who to become.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Args {
    /// User id
    #[arg(long)]
    pub uid: u32,
    /// Group id
    #[arg(long)]
    pub gid: u32,
}

/// Gives everything up, then works until the channel ends.
///
/// # Errors
/// If the process can't be confined, or the worker can't go on.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    telemetry::init("info", telemetry::destination())?;
    let channel = sandbox::take_channel()?;
    sandbox::enter(
        Unprivileged {
            uid: args.uid,
            gid: args.gid,
        },
        &channel,
    )?;
    worker::run(channel).context("the worker can't go on")?;
    Ok(ExitCode::SUCCESS)
}
