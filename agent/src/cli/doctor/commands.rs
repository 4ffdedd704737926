//! The check of whether ordinary users' commands can start: `callgate exec` keeps them from the host's services in a user
//! namespace. It is tried, since settings, filters and profiles of many kinds can forbid it.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode, Stdio};

use nix::unistd::geteuid;

use super::Check;
use crate::cli::exec;
use crate::policy::matcher::Account;
use crate::policy::{Policy, Workload};

const NAME: &str = "user namespaces";
/// Who tries where the doctor is root.
const NOBODY: u32 = 65534;

/// `policy` is none if it has errors, of which its own check tells.
pub(super) fn check(policy: Option<&Policy>) -> Check {
    if !policy.is_some_and(|policy| policy.workloads().any(lets_others_exec)) {
        return Check::pass(NAME, "not needed: no `exec_by` names ordinary users");
    }
    match tried() {
        Ok(()) => Check::pass(
            NAME,
            "ordinary users that `exec_by` names can start commands in them",
        ),
        Err(why) => Check::warn(
            NAME,
            format!("`callgate exec` refuses to ordinary users what `exec_by` lets them run: {why}"),
            exec::USER_NAMESPACES,
        ),
    }
}

/// `callgate view`: makes what the check asks about, as the user that this process is.
///
/// # Errors
/// If it can't be made.
pub fn view() -> anyhow::Result<ExitCode> {
    exec::try_as_user()?;
    Ok(ExitCode::SUCCESS)
}

fn lets_others_exec(workload: &Workload) -> bool {
    let exec_by = workload.exec_by();
    let mut users = exec_by.users.iter();
    !exec_by.groups.is_empty() || users.any(|user| !is_root(user))
}

fn is_root(user: &Account) -> bool {
    match user {
        Account::Id(id) => *id == 0,
        Account::Name(name) => &**name == "root",
    }
}

fn tried() -> Result<(), String> {
    let mut trying = Command::new("/proc/self/exe");
    trying.arg("view").stdin(Stdio::null());
    if geteuid().is_root() {
        trying.uid(NOBODY).gid(NOBODY);
    }
    let output = trying.output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim();
    Err(said.strip_prefix("callgate: ").unwrap_or(said).to_owned())
}
