//! What root may do beside an installed agent: start a second one, stop its processes, take its kernel programs away.

use anyhow::{Context as _, Result};
use harness::{Bed, Record, require, wait};
use nix::sys::signal::Signal;

use super::all_answered;
use super::installed::{call, main_pid, managed, settled, start, status};
use crate::load::{Load, check_records};
use crate::perimeter::{DETACH, is_noticed};
use crate::replace::stopped::{Dials, stop_each};

const LACKING: Option<i32> = Some(3);
/// The pins of the workload's links.
const PINS: &str = "find /sys/fs/bpf/callgate/links/cgroup-$(stat -c%i /sys/fs/cgroup/callgate.slice/callgate-billing.slice) -type f";

#[test]
fn a_second_agent_is_told_which_one_runs_and_takes_nothing_from_it() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = start()?;
    let first = main_pid(&bed)?;
    let load = Load::start(bed.world(), |args| bed.command(managed(args)), 4, 4)?;
    let run = ["callgate", "run"];
    for more in [&[][..], &["--user", "callgate-agent"]] {
        let second = bed.run(run.iter().chain(more))?;
        assert_eq!(second.code(), LACKING, "{second:?}");
        let why = format!("another agent holds /run/callgate/lock (process {first}); stop it first");
        assert!(second.stderr.contains(&why), "{second:?}");
        load.goes_on()?;
    }
    assert_eq!(main_pid(&bed)?, first);
    assert_eq!(bed.run(["callgate", "status"])?.code(), Some(0));
    // What the second one left is in nobody's way.
    bed.systemctl(&["restart", "callgate"])?.ok()?;
    load.goes_on()?;
    all_answered(&load.end()?);
    let (records, arrived) = settled(&bed)?;
    check_records(&records, &arrived);
    Ok(())
}

#[test]
fn whichever_of_the_service_s_processes_is_stopped_nobody_goes_out_directly() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = start()?;
    let supervisor = main_pid(&bed)?;
    let serving = status(&bed)?["worker_pid"].as_u64().context("no worker")?;
    let send = |pid: u32, signal: Signal| {
        let signal = format!("--signal={}", signal.as_str());
        bed.run(["/bin/kill", &signal, &pid.to_string()])?.ok()?;
        Ok(())
    };
    let dials = Dials::start(bed.world(), |args| bed.command(managed(args)))?;
    stop_each(&dials, send, supervisor.parse()?, u32::try_from(serving)?)?;
    dials.end()?;
    let (mut records, arrived) = settled(&bed)?;
    // Who gave up before a request was read has said no path.
    records.remove("-");
    check_records(&records, &arrived);
    // It went on by itself: systemd had no reason to start another.
    assert_eq!(main_pid(&bed)?, supervisor);
    assert_eq!(status(&bed)?["worker_pid"], serving);
    Ok(())
}

fn put_back(bed: &Bed) -> Result<()> {
    wait::until("the perimeter put back", wait::PATIENCE, || {
        let status = status(bed).ok()?;
        (status["perimeter_repairs"].as_u64() > Some(0) && status["perimeter_intact"] == true).then_some(())
    })
}

#[test]
fn links_that_root_detaches_are_put_back_and_on_record_within_a_second() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = start()?;
    let pins = bed.sh(PINS)?.ok()?;
    assert_eq!(pins.lines().count(), 13, "{pins}");
    let detach = ["python3", "-c", DETACH].into_iter().chain(pins.lines());
    let since: i128 = bed.run(detach)?.ok()?.trim().parse()?;
    put_back(&bed)?;
    call(&bed, "/after")?;
    let names = |record: &Record| {
        record.text("error.kind") == "perimeter" && record.text("error.message").contains("cg_connect4")
    };
    wait::until("a record that names a link", wait::PATIENCE, || {
        bed.records().ok()?.iter().any(names).then_some(())
    })?;
    is_noticed(&bed.records()?, since)?;
    assert_eq!(bed.sh(PINS)?.ok()?, pins);
    let (records, arrived) = settled(&bed)?;
    check_records(&records, &arrived);
    Ok(())
}
