//! `callgate canary`: one connect from inside a workload, started by the supervisor with the workload's `cgroup.procs` as
//! standard input. What came of it is the exit code.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::Duration;

use crate::channel::CANARY;
use crate::supervisor::canary::Told;
use crate::supervisor::sandbox::{self, Unprivileged};

use super::worker::Args;

/// How long to wait for the connection, and then for its end.
const PATIENCE: Duration = Duration::from_secs(3);

/// Enters the workload, gives up everything, connects.
///
/// # Errors
/// If the process can't be confined; nothing is dialled then.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let procs = sandbox::take_channel()?;
    let entered = std::fs::File::from(procs.try_clone()?).write_all(b"0");
    if entered.is_err() {
        return Ok(Told::NotInside.into());
    }
    sandbox::enter(
        Unprivileged {
            uid: args.uid,
            gid: args.gid,
        },
        &procs,
    )?;
    Ok(dial().into())
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
