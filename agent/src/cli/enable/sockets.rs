//! The socket units of a service: which there are, and their drop-ins on this host.

use std::fs;

use anyhow::Context as _;

use super::host;
use crate::enroll::unit::{self, Facts};
use crate::identity::WorkloadName;

/// Those that start `unit`, loaded or not. A template can have two kinds: one of which each connection starts an
/// instance, and a template of its own.
pub(super) fn of(unit: &str, facts: &Facts) -> anyhow::Result<Vec<Facts>> {
    let loaded = facts
        .words("TriggeredBy")
        .filter(|name| name.ends_with(".socket"));
    let mut names: Vec<String> = loaded.map(host::of_template).collect();
    let triggers = host::triggers(".socket")?;
    let that_trigger = triggers
        .into_iter()
        .filter(|(_, services)| services.iter().any(|one| one == unit));
    names.extend(that_trigger.map(|(name, _)| name));
    let of_each = unit
        .split_once("@.")
        .map(|(prefix, _)| format!("{prefix}.socket"));
    names.extend(of_each.clone());
    names.sort_unstable();
    names.dedup();
    let mut found = Vec::new();
    for name in names {
        let socket = host::shown(&name)?;
        let starts_it = of_each.as_ref() != Some(&name) || socket.is("Accept");
        if socket.get("LoadState") == "loaded" && starts_it {
            found.push(socket);
        }
    }
    Ok(found)
}

/// The socket units with drop-ins that were written for a service.
pub(super) fn written_for(service: &str) -> anyhow::Result<Vec<String>> {
    let named = host::drop_ins(".socket")?;
    let of_it = named
        .into_iter()
        .filter(|(socket, text)| unit::is_for(text, socket, service));
    Ok(of_it.map(|(socket, _)| socket).collect())
}

/// Writes those of a plan, and removes what it has no more.
pub(super) fn write(service: &str, planned: &[(String, String)]) -> anyhow::Result<()> {
    for (socket, text) in planned {
        host::write(&host::file(socket), text)?;
    }
    for written in written_for(service)? {
        if !planned.iter().any(|(socket, _)| *socket == written) {
            host::remove(&host::file(&written))?;
        }
    }
    Ok(())
}

/// Those that listen outside of the workload, as they did before it was one.
pub(super) fn outside(sockets: &[String], workload: &WorkloadName) -> anyhow::Result<Vec<String>> {
    let slice = format!("/{}/", workload.slice());
    let mut found = Vec::new();
    for socket in sockets {
        let running = host::running(socket)?;
        let outside = running.into_iter().filter(|(_, cgroup)| !cgroup.contains(&slice));
        found.extend(outside.map(|(name, _)| name));
    }
    Ok(found)
}

/// What of a service's drop-ins on this host is not as planned.
pub(super) fn is_stale(service: &str, plan: &unit::Plan) -> anyhow::Result<bool> {
    let wanted = [(service.to_owned(), plan.drop_in.clone())];
    for (name, text) in wanted.iter().chain(&plan.sockets) {
        let file = host::file(name);
        let there = match fs::read_to_string(&file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(true),
            read => read.with_context(|| format!("can't read {}", file.display()))?,
        };
        if there != *text {
            return Ok(true);
        }
    }
    Ok(written_for(service)?.len() != plan.sockets.len())
}
