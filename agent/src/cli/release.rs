//! `callgate release`: workloads that shall be managed no more.

use std::io::Write;
use std::process::ExitCode;

use super::{NO, complain, enable};
use crate::admin::{self, client};
use crate::config::Config;
use crate::identity::WorkloadName;
use crate::supervisor::Error;
use crate::supervisor::uninstall::{Running, release_all};

/// What the command line gives.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// One workload that the policy has no more; the agent must run
    #[arg(value_name = "NAME", required_unless_present = "all", value_parser = super::exec::parse_workload)]
    pub workload: Option<WorkloadName>,
    /// All workloads; the agent must be stopped
    #[arg(long, conflicts_with = "workload")]
    pub all: bool,
    /// Also those in which processes run: these keep running, and nothing holds them any more
    #[arg(long)]
    pub running: bool,
}

/// Lets go of one workload, or of all. Exit code 1 if processes run in one and shall not be let go, or if the agent
/// refuses.
///
/// # Errors
/// If it can't be done, with what stands in the way.
pub fn run(args: &Args, config: &Config, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    match &args.workload {
        Some(workload) => one(workload, args.running, config, out),
        None => all(args.running, config, out),
    }
}

/// Asks the agent: it alone can keep processes from entering meanwhile.
fn one(
    workload: &WorkloadName,
    running: bool,
    config: &Config,
    out: &mut dyn Write,
) -> anyhow::Result<ExitCode> {
    let asked = admin::Release {
        workload: workload.to_string(),
        running,
    };
    let asked = serde_json::to_vec(&asked)?;
    let released: admin::Released = client::ask(&config.admin_socket, "POST", "/v1/release", asked)?;
    if released.running {
        writeln!(
            out,
            "{workload}: its processes run on, and nothing holds them any more; restart them"
        )?;
    }
    writeln!(out, "{workload} is not held any more")?;
    for unit in enable::enabled_for(workload)? {
        writeln!(out, "{unit} does not start any more: `callgate disable {unit}`")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn all(running: bool, config: &Config, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let running = if running { Running::LetGo } else { Running::Refuse };
    let left = match release_all(config, running) {
        Ok(left) => left,
        Err(error @ Error::Occupied { .. }) => {
            complain(&error.to_string());
            return Ok(ExitCode::from(NO));
        }
        Err(error) => return Err(error.into()),
    };
    let freed = enable::disable_all()?;
    for one in &freed {
        writeln!(out, "{} is managed no more", one.unit)?;
    }
    for workload in &left {
        writeln!(
            out,
            "{workload}: its processes run on, and nothing holds them any more; restart them"
        )?;
    }
    for line in freed.iter().filter_map(enable::freed::Freed::back) {
        writeln!(out, "{line}")?;
    }
    writeln!(out, "no workload is held any more")?;
    Ok(ExitCode::SUCCESS)
}
