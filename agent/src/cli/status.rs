//! `callgate status`: what runs.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use comfy_table::Table;
use comfy_table::presets::NOTHING;

use super::NO;
use crate::admin::{Status, client};

/// Shows what runs; exit code 1 if something that must hold doesn't.
///
/// # Errors
/// If the agent can't be asked, or `out` not be written to.
pub fn run(socket: &Path, json: bool, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let status: Status = client::ask(socket, "GET", "/v1/status", Vec::new())?;
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&status)?)?;
    } else {
        show(&status, out)?;
    }
    let serves = status.worker_pid.is_some() && status.worker_error.is_none();
    let credentials = status.credentials.iter().all(|one| one.reason.is_none());
    let holds = status.perimeter_intact && status.canaries.is_empty();
    let holds = holds && status.trust_error.is_none();
    let good = status.audit_ok && holds && serves && status.reload_error.is_none() && credentials;
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(NO)
    })
}

fn show(status: &Status, out: &mut dyn Write) -> anyhow::Result<()> {
    let word = |good: bool| if good { "yes" } else { "NO" };
    writeln!(out, "callgate {}, up {} s", status.version, status.uptime_s)?;
    writeln!(
        out,
        "policy      generation {} ({:.12})",
        status.generation, status.policy_digest
    )?;
    if let Some(why) = &status.reload_error {
        let why = why.replace('\n', "\n              ");
        writeln!(
            out,
            "reload      REFUSED, the policy above stays; `callgate reload` tries again\n              {why}"
        )?;
    }
    writeln!(out, "worker      {}", worker(status))?;
    writeln!(
        out,
        "calls       {} ({} denied, {} failed)",
        status.calls, status.denied, status.failed
    )?;
    write!(out, "records     {}", word(status.audit_ok))?;
    match &status.audit_error {
        Some(why) => writeln!(out, " ({why}; calls are refused)")?,
        None => writeln!(out)?,
    }
    if let Some(why) = &status.trust_error {
        writeln!(
            out,
            "roots       OLD, the host's have changed ({why}); it is tried again"
        )?;
    }
    write!(out, "perimeter   {}", word(status.perimeter_intact))?;
    match status.perimeter_repairs {
        0 => writeln!(out)?,
        times => writeln!(
            out,
            " (kernel programs were taken away and put back {times} times)"
        )?,
    }
    for one in &status.canaries {
        writeln!(out, "canary      {one}")?;
    }
    let mut workloads = table(["WORKLOAD", "CGROUP", "CONNECTIONS", "IN POLICY"]);
    for one in &status.workloads {
        let in_policy = if one.in_policy {
            "yes"
        } else {
            "NO, held with nothing allowed"
        };
        let connections = one.connections.to_string();
        workloads.add_row([&one.name, &one.cgroup, &connections, in_policy]);
    }
    writeln!(out, "\n{workloads}")?;
    for one in &status.strangers {
        let id = one.cgroup_id;
        writeln!(
            out,
            "held too    cgroup {id} of an earlier run, not below cgroup_parent: nothing is allowed in it; `find /sys/fs/cgroup -inum {id}` shows it"
        )?;
    }
    let mut credentials = table(["CREDENTIAL", "STATE", "VERSION"]);
    for one in &status.credentials {
        let state = one.reason.as_deref().unwrap_or("ready");
        credentials.add_row([&one.name, state, one.version.as_deref().unwrap_or("-")]);
    }
    writeln!(out, "\n{credentials}")?;
    for (reason, count) in status.kernel.iter().filter(|(_, count)| **count > 0) {
        writeln!(out, "kernel      {reason} {count}")?;
    }
    Ok(())
}

fn worker(status: &Status) -> String {
    let mut text = match status.worker_pid {
        Some(pid) => format!("pid {pid}"),
        None => "NONE (connections are refused)".to_owned(),
    };
    if status.draining > 0 {
        text.push_str(&format!(", {} before it drain", status.draining));
    }
    if let Some(why) = &status.worker_error {
        text.push_str(&format!("; the last one that was started FAILED: {why}"));
    }
    text
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(header);
    table
}
