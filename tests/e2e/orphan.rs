//! A workload that the policy no longer names when the agent comes back has no rights left.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use harness::launch::Place;
use harness::{Upstream, World, assert_record, require};

use crate::audit::agent_status;
use crate::identity::{API, CODE, status, workload};

/// A workload that reaches the upstream's port by no agent, and serves a port of its own.
const OTHER: &str = "[[workload]]\nname = \"other-one\"\nlisten = [8080]\n[[workload.direct]]\ncidr = \"203.0.113.0/24\"\n\
    port = 443\nforce = true\n";

/// The status that a client gets there on the direct way; 0 for none.
fn direct(inside: &Path, path: &str) -> Result<u16> {
    let url = format!("https://{API}{path}");
    let curl = ["curl", "-sSk4", "-o", "/dev/null", "-m", "5", "-w", CODE, &url];
    Ok(status(&Place::in_cgroup(inside).run(curl)?))
}

fn shown(world: &World) -> Result<serde_json::Value> {
    let (_, document) = agent_status(world)?;
    let all = document["workloads"].as_array().context("no workloads")?;
    let found = all.iter().find(|one| one["name"] == "other-one");
    Ok(found.context("it is not shown")?.clone())
}

#[test]
fn rights_that_are_taken_away_while_the_agent_is_down_are_gone_after_its_start() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = World::new()?;
    world.upstream(Upstream::new(API))?;
    world.policy("billing.toml", &workload("billing", "", ""))?;
    world.policy("other.toml", OTHER)?;
    world.start_agent()?;
    let inside = world
        .cgroup()
        .join("workloads/callgate-other\\x2done.slice/service");
    fs::create_dir(&inside)?;
    assert_eq!(direct(&inside, "/allowed")?, 200);
    world.stop_agent()?;
    let file = world.dir().join("policy.d/other.toml");
    fs::remove_file(&file)?;
    world.start_agent()?;
    assert_eq!(direct(&inside, "/revoked")?, 0);
    let log = world.server(API)?.log()?;
    assert!(log.iter().all(|line| line.uri != "/revoked"), "{log:?}");
    assert_record!(
        world,
        "workload" = "other-one",
        "decision" = "deny",
        "original_destination" = "203.0.113.10:443",
    );
    assert_eq!(shown(&world)?["in_policy"], false);
    // It is the same workload when the policy has it again.
    fs::write(file, OTHER)?;
    world.reload()?;
    assert_eq!(direct(&inside, "/allowed/again")?, 200);
    assert_eq!(shown(&world)?["in_policy"], true);
    Ok(())
}
