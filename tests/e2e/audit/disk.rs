//! What becomes of calls and records when the log can't be written, and when its file goes.

use std::fs::{self, File};
use std::io::Write as _;

use anyhow::{Context, Result, ensure};
use harness::{Upstream, World, assert_record, require, wait};

use super::{agent_status, call, call_until, worker};
use crate::identity::{API, workload};

/// Four times what the agent reserves for its records.
const DISK: usize = 1024 * 1024;
/// More calls than the reserved room can take.
const CALLS: usize = 400;

fn start() -> Result<World> {
    let mut world = World::new()?;
    world.small_audit_disk(DISK)?;
    world.upstream(Upstream::new(API))?;
    world.policy("audit.toml", &workload("billing", "", ""))?;
    world.start_agent()?;
    Ok(world)
}

/// The statuses of many calls on one connection.
fn many(world: &World, prefix: &str) -> Result<Vec<String>> {
    let urls = format!("https://{API}{prefix}[1-{CALLS}]");
    let reply =
        world
            .workload("billing")?
            .run(["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}\n", &urls])?;
    Ok(reply.stdout.lines().map(ToOwned::to_owned).collect())
}

fn count(statuses: &[String], wanted: &str) -> usize {
    statuses.iter().filter(|status| *status == wanted).count()
}

#[test]
fn a_full_disk_refuses_calls_and_says_so_and_room_brings_them_back() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    assert_eq!(call(&world, "/before")?, 200);
    let first_worker = worker(&world)?;
    let filler = world.dir().join("audit/filler");
    let mut file = File::create(&filler)?;
    while file.write_all(&[0; 4096]).is_ok() {}
    let statuses = many(&world, "/full/")?;
    let (passed, refused) = (count(&statuses, "200"), count(&statuses, "503"));
    ensure!(
        refused > 0 && passed + refused == CALLS,
        "{passed} passed, {refused} refused"
    );
    let url = format!("https://{API}/full/body");
    let reply = world.workload("billing")?.run(["curl", "-sS", &url])?;
    assert!(reply.stdout.contains("audit_unavailable"), "{reply:?}");
    let (code, document) = wait::until("status says so", wait::PATIENCE, || {
        agent_status(&world)
            .ok()
            .filter(|(_, document)| document["audit_ok"] == false)
    })?;
    assert_eq!(code, Some(1));
    let why = document["audit_error"].as_str().unwrap_or_default();
    assert!(why.contains("No space left"), "{document}");
    drop(file);
    fs::remove_file(&filler)?;
    call_until(&world, "/after/", 200)?;
    let unrecorded = wait::until("the count of refused calls", wait::PATIENCE, || {
        let records = world.records().ok()?;
        let of_it = records
            .iter()
            .filter(|record| record.text("kind") == "unrecorded");
        let sum: u64 = of_it.filter_map(|record| record.field("count").as_u64()).sum();
        (sum > refused as u64).then_some(records)
    })?;
    let recorded = unrecorded
        .iter()
        .filter(|record| record.text("path").starts_with("/full/") && record.text("outcome") == "completed");
    assert_eq!(recorded.count(), passed);
    let arrived = world.server(API)?.log()?;
    let arrived = arrived.iter().filter(|line| line.uri.starts_with("/full/"));
    assert_eq!(arrived.count(), passed, "a call went out unrecorded");
    assert_eq!(worker(&world)?, first_worker, "the full disk ended the worker");
    wait::until("a good status", wait::PATIENCE, || {
        agent_status(&world).ok().filter(|(code, _)| *code == Some(0))
    })?;
    Ok(())
}

#[test]
fn a_log_that_is_renamed_or_removed_under_the_agent_is_begun_anew() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let log = world.audit_file();
    call_until(&world, "/before/", 200)?;
    fs::rename(&log, log.with_extension("old"))?;
    wait::until("a new file", wait::PATIENCE, || log.exists().then_some(()))?;
    let after = call_until(&world, "/renamed/", 200)?;
    wait::until("a record in either file", wait::PATIENCE, || {
        let old = fs::read_to_string(log.with_extension("old")).ok()?;
        let new = fs::read_to_string(&log).ok()?;
        (old + &new).contains(&after).then_some(())
    })?;
    fs::remove_file(&log).context("can't remove the log")?;
    wait::until("a new file", wait::PATIENCE, || log.exists().then_some(()))?;
    let after = call_until(&world, "/removed/", 200)?;
    assert_record!(world, "path" = after.as_str(), "outcome" = "completed");
    Ok(())
}
