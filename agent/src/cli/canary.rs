//! `callgate canary`: one connect from inside a workload, started by the supervisor with the workload's `cgroup.procs` as
//! standard input, and its network namespace as standard output if that is another one. What came of it is the exit code.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::process::ExitCode;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::unistd::dup2_stdout;

use crate::channel::CANARY;
use crate::supervisor::canary::Told;
use crate::supervisor::sandbox;

use super::worker;

/// Who to become, and where.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Place {
    /// Who to become
    #[command(flatten)]
    pub user: worker::User,
    /// Enter the network namespace that is standard output
    #[arg(long)]
    pub netns: bool,
}

/// How long to wait for the connection, and then for its end.
const PATIENCE: Duration = Duration::from_secs(3);

/// Enters the workload, gives up everything, connects.
///
/// # Errors
/// If the process can't be confined; nothing is dialled then.
pub fn run(args: Place) -> anyhow::Result<ExitCode> {
    let procs = sandbox::take_channel()?;
    let entered = File::from(procs.try_clone()?).write_all(b"0");
    if entered.is_err() || (args.netns && enter_netns().is_err()) {
        return Ok(Told::NotInside.into());
    }
    sandbox::enter(args.user.into(), &procs)?;
    Ok(dial().into())
}

fn enter_netns() -> anyhow::Result<()> {
    let netns = std::io::stdout().as_fd().try_clone_to_owned()?;
    dup2_stdout(File::options().write(true).open("/dev/null")?)?;
    setns(netns, CloneFlags::CLONE_NEWNET)?;
    Ok(())
}

fn dial() -> Told {
    match TcpStream::connect_timeout(&CANARY, PATIENCE) {
        Ok(mut stream) => {
            // Its end, however it comes, is the sign that who accepted it has looked at it.
            if stream.set_read_timeout(Some(PATIENCE)).is_ok() {
                drop(stream.read_exact(&mut [0]));
            }
            Told::Connected
        }
        // The one is for what policy refuses, the other for what the agent can't take.
        Err(error) if [ErrorKind::PermissionDenied, ErrorKind::ConnectionRefused].contains(&error.kind()) => {
            Told::Refused
        }
        Err(_) => Told::Failed,
    }
}
