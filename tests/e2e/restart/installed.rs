//! The same on a booted Debian, by systemd and dpkg.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context as _, Result};
use harness::{Access, Bed, Record, assert_record, bed, require, wait};
use serde_json::Value;

use super::{STREAMS, Streams, all_answered, is_refused, of_streams};
use crate::identity::API;
use crate::load::{Load, Recorded, TOKEN, allowing, by_path, check_records, prepared};

pub(super) const EXEC: [&str; 5] = ["callgate", "exec", "--workload", "billing", "--"];
/// Without an agent nobody is enrolled; what systemd starts in the slice is the workload's all the same.
const IN_SLICE: [&str; 5] = [
    "systemd-run",
    "--quiet",
    "--wait",
    "--pipe",
    "--slice=callgate-billing.slice",
];
/// Who listens, and for whom.
pub(super) const LISTENERS: &str = "ss -Hltn src 127.0.0.1 or src '[::1]' | awk '{print $4}' | sort";

pub(super) fn start() -> Result<Bed> {
    let bed = Bed::installed(prepared()?)?;
    bed.secret("token", TOKEN)?;
    let credential = format!(
        "[credential.token]\nhosts = [\"{API}:443\"]\nscheme = \"bearer\"\nsource = {{ file = \"/etc/callgate/secrets/token\" }}\n"
    );
    bed.policy(&(allowing("") + &credential))?;
    Ok(bed)
}

pub(super) fn managed<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [&EXEC, args].concat()
}

pub(super) fn main_pid(bed: &Bed) -> Result<String> {
    bed.property("callgate", "MainPID")
}

/// A managed call, which succeeds.
pub(super) fn call(bed: &Bed, path: &str) -> Result<()> {
    let url = format!("https://{API}{path}");
    bed.run(managed(&["curl", "-sS", "-f", "-o", "/dev/null", &url]))?
        .ok()?;
    Ok(())
}

pub(super) fn status(bed: &Bed) -> Result<Value> {
    let said = bed.run(["callgate", "status", "--json"])?;
    Ok(serde_json::from_str(&said.stdout)?)
}

/// What is recorded and what the upstream has logged, once all is.
pub(super) fn settled(bed: &Bed) -> Result<(Recorded, Vec<Access>)> {
    let url = format!("https://{API}/barrier");
    bed.run(managed(&["curl", "-sS", "-f", "-o", "/dev/null", &url]))?
        .ok()?;
    assert_record!(bed, "path" = "/barrier");
    Ok((by_path(bed.records()?), bed.world().server(API)?.log()?))
}

/// Does this to a loaded agent, and sees that nobody lost anything by it.
fn under_load(change: impl FnOnce(&Bed) -> Result<()>) -> Result<Bed> {
    let bed = start()?;
    let listeners = bed.sh(LISTENERS)?.ok()?;
    assert_eq!(listeners.lines().count(), 2, "{listeners}");
    let load = Load::start(bed.world(), |args| bed.command(managed(args)), 4, 4)?;
    let streams = Streams::start(|args| bed.command(managed(args)))?;
    change(&bed)?;
    load.goes_on()?;
    assert_eq!(bed.sh(LISTENERS)?.ok()?, listeners);
    all_answered(&load.end()?);
    streams.end_well()?;
    let (records, arrived) = settled(&bed)?;
    check_records(&records, &arrived);
    assert_eq!(of_streams(&records), vec!["completed"; STREAMS]);
    Ok(bed)
}

/// The links that the agent holds to cgroups of workloads, guard included, and the number of the program that each runs (proc(5),
/// fdinfo). Links to the agent's own cgroup are made anew with it.
fn linked_programs(bed: &Bed) -> Result<BTreeMap<String, String>> {
    let script = format!("cat /proc/{}/fdinfo/*", main_pid(bed)?);
    let shown = bed.sh(&script)?.stdout;
    let own = bed
        .run(["stat", "-c%i", "/sys/fs/cgroup/system.slice/callgate.service"])?
        .ok()?;
    let mut found = BTreeMap::new();
    for of_one in shown
        .split("pos:")
        .filter(|text| text.contains("link_type:\tcgroup"))
    {
        let field = |name: &str| {
            let line = of_one.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.trim().to_owned())
        };
        let fields = field("link_id:").zip(field("prog_id:")).zip(field("cgroup_id:"));
        let ((link, program), cgroup) = fields.with_context(|| of_one.to_owned())?;
        if cgroup != own.trim() {
            found.insert(link, program);
        }
    }
    Ok(found)
}

/// A unit that makes one connection after another, in its condition and before and in its main program, until it is stopped.
const RESTLESS: &str = r#"
[Service]
User=nobody
Restart=always
RestartSec=0
TimeoutStopSec=2
ExecStartPre=/bin/sh -c 'for i in 1 2 3; do curl -s --max-time 5 -o /dev/null https://api.example.test/load/pre/$$$$-$i; done; true'
ExecStart=/bin/bash -c 'i=0; while true; do curl -s --max-time 5 -o /dev/null https://api.example.test/load/main/$$$$-$i & i=$((i+1)); [ $((i%%4)) != 0 ] || wait; done'
[Unit]
StartLimitIntervalSec=0
"#;

#[test]
fn a_unit_that_connects_without_a_pause_is_captured_over_twenty_restarts_of_its_own() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    const RESTARTS: usize = 20;
    let bed = start()?;
    bed.unit("restless.service", RESTLESS)?;
    bed.run(["callgate", "enable", "restless", "--workload", "billing"])?
        .ok()?;
    let mut invocations = BTreeSet::new();
    for _ in 0..RESTARTS {
        bed.systemctl(&["restart", "restless"])?.ok()?;
        let invocation = bed.property("restless", "InvocationID")?;
        wait::until("a call of this start", wait::PATIENCE, || {
            let records = bed.records().ok()?;
            let here = |one: &Record| {
                one.text("invocation") == invocation
                    && one.text("status") == "200"
                    && one.text("path").starts_with("/load/main/")
            };
            records.iter().any(here).then_some(())
        })?;
        invocations.insert(invocation);
    }
    assert_eq!(invocations.len(), RESTARTS);
    bed.systemctl(&["stop", "restless"])?.ok()?;
    let (records, arrived) = settled(&bed)?;
    let of_unit = |path: &&str| arrived.iter().filter(|line| line.uri.starts_with(path)).count();
    assert!(
        ["/load/pre/", "/load/main/"]
            .iter()
            .all(|path| of_unit(path) >= RESTARTS),
        "{arrived:?}"
    );
    check_records(&records, &arrived);
    let of_another: Vec<_> = records
        .iter()
        .filter(|(path, of_it)| path.starts_with("/load/") && of_it[0].text("unit") != "restless.service")
        .collect();
    assert!(of_another.is_empty(), "{of_another:?}");
    Ok(())
}

fn nobody_drains(bed: &Bed) -> Result<()> {
    wait::until("the old worker's end", wait::PATIENCE, || {
        (status(bed).ok()?["draining"] == 0).then_some(())
    })
}

#[test]
fn systemctl_restart_and_reload_under_load_lose_nothing() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = under_load(|bed| {
        let before = main_pid(bed)?;
        bed.systemctl(&["reload", "callgate"])?.ok()?;
        assert_eq!(main_pid(bed)?, before);
        bed.systemctl(&["restart", "callgate"])?.ok()?;
        assert_ne!(main_pid(bed)?, before);
        Ok(())
    })?;
    nobody_drains(&bed)
}

#[test]
fn an_upgrade_of_the_package_under_load_loses_nothing() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = under_load(|bed| {
        let (before, old) = (main_pid(bed)?, linked_programs(bed)?);
        bed.install(&bed::next_package()?)?;
        let pid = main_pid(bed)?;
        assert_ne!(pid, before);
        let new = linked_programs(bed)?;
        assert!(old.len() > 15, "{old:?}");
        // The same links: nothing was detached in between. With other programs: those of the new binary.
        let links = |all: &BTreeMap<String, String>| all.keys().cloned().collect::<Vec<_>>();
        assert_eq!(links(&new), links(&old));
        let kept: Vec<_> = old
            .iter()
            .filter(|(link, program)| new[*link] == **program)
            .collect();
        assert!(kept.is_empty(), "{kept:?}");
        let running = bed.run(["readlink", &format!("/proc/{pid}/exe")])?.ok()?;
        assert_eq!(running.trim(), "/usr/bin/callgate");
        Ok(())
    })?;
    let version = bed
        .run(["dpkg-query", "-W", "-f", "${Version}", "callgate"])?
        .ok()?;
    assert!(version.ends_with("+next"), "{version}");
    nobody_drains(&bed)
}

#[test]
fn systemctl_stop_lets_calls_end_and_leaves_nothing_behind() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = start()?;
    let streams = Streams::start(|args| bed.command(managed(args)))?;
    bed.systemctl(&["stop", "callgate"])?.ok()?;
    assert_eq!(bed.sh(LISTENERS)?.ok()?, "");
    // By a process that systemd starts in the workload's slice.
    let run = |curl: &[&str]| bed.run(IN_SLICE.iter().chain(curl));
    is_refused(bed.world(), "/draining", run)?;
    streams.end_well()?;
    let group = bed.cgroup().join("system.slice/callgate.service/cgroup.procs");
    wait::until("the worker's end", wait::PATIENCE, || {
        let left = fs::read_to_string(&group).unwrap_or_default();
        left.is_empty().then_some(())
    })?;
    is_refused(bed.world(), "/stopped", run)?;
    bed.systemctl(&["start", "callgate"])?.ok()?;
    let (records, arrived) = settled(&bed)?;
    assert!(
        arrived
            .iter()
            .all(|line| !["/draining", "/stopped"].contains(&line.uri.as_str()))
    );
    check_records(&records, &arrived);
    assert_eq!(of_streams(&records), vec!["completed"; STREAMS]);
    Ok(())
}
