//! `callgate release`: workloads that shall be managed no more.

use std::io::Write;
use std::process::ExitCode;

use super::NO;
use crate::config::Config;
use crate::supervisor::Error;
use crate::supervisor::uninstall::{Running, release_all};

/// What the command line gives.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// All workloads; the agent must be stopped
    #[arg(long, required = true)]
    pub all: bool,
    /// Also those in which processes run: these keep running, and nothing holds them any more
    #[arg(long)]
    pub running: bool,
}

/// Lets go of all workloads. Exit code 1 if processes run in one and shall not be let go.
///
/// # Errors
/// If it can't be done, with what stands in the way.
pub fn run(args: &Args, config: &Config, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let running = if args.running {
        Running::LetGo
    } else {
        Running::Refuse
    };
    let left = match release_all(config, running) {
        Ok(left) => left,
        Err(error @ Error::Occupied { .. }) => {
            super::complain(&error.to_string());
            return Ok(ExitCode::from(NO));
        }
        Err(error) => return Err(error.into()),
    };
    for workload in left {
        writeln!(
            out,
            "{workload}: its processes run on, and nothing holds them any more; restart them"
        )?;
    }
    writeln!(out, "no workload is held any more")?;
    Ok(ExitCode::SUCCESS)
}
