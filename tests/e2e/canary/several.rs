//! Of several workloads that one is found whose connections are not captured; the others stay good and go on.

use std::collections::BTreeSet;
use std::fs;
use std::process::Child;

use anyhow::{Context, Result};
use harness::{Record, Upstream, World, assert_record, require, wait};

use super::{doctor, end, findings, inode, keep_empty, redirected};
use crate::audit::agent_status;
use crate::identity::{API, CODE, status, workload};

const ALL: [&str; 3] = ["billing", "ci", "shop"];
const BROKEN: &str = "ci";
const GOOD: [&str; 2] = ["billing", "shop"];

fn start() -> Result<World> {
    let mut world = World::new()?;
    world.upstream(Upstream::new(API))?;
    let policy = ALL.map(|name| workload(name, "", ""));
    world.policy("canary.toml", &policy.concat())?;
    world.settings("canary_seconds = 1");
    world.start_agent()?;
    Ok(world)
}

/// Takes out of the kernel what it knows of this workload alone, again and again, until it is killed.
fn break_one(world: &World, name: &str) -> Result<Child> {
    let slice = format!("workloads/callgate-{name}.slice");
    let id = inode(&fs::metadata(world.cgroup().join(slice))?);
    keep_empty(world, "WORKLOADS", &[id.to_string()])
}

fn call(world: &World, name: &str, path: &str) -> Result<u16> {
    let url = format!("https://{API}{path}");
    let curl = ["curl", "-sS", "-o", "/dev/null", "-w", CODE, "-m", "20", &url];
    Ok(status(&world.workload(name)?.run(curl)?))
}

/// The workloads of which there are records that a canary failed.
fn recorded(world: &World) -> Result<BTreeSet<String>> {
    let records = world.records()?;
    let failed = records.iter().filter(|one| one.text("error.kind") == "canary");
    Ok(failed
        .map(|one: &Record| one.text("workload").to_owned())
        .collect())
}

/// The workloads that the agent's log has on lines with these words.
fn logged(world: &World, words: &str) -> Result<BTreeSet<&'static str>> {
    let log = world.agent()?.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains(words)).collect();
    let is_named = |name: &&str| {
        lines
            .iter()
            .any(|line| line.contains(&format!("workload={name}")))
    };
    Ok(ALL.into_iter().filter(is_named).collect())
}

#[test]
fn of_several_workloads_that_one_which_the_kernel_forgot_is_a_finding_and_the_others_go_on() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    for name in ALL {
        assert_eq!(call(&world, name, "/before")?, 200, "{name}");
    }
    let breaking = break_one(&world, BROKEN)?;

    let found: serde_json::Value = serde_json::from_str(&findings(&world, true)?)?;
    assert_eq!(found.as_array().map(Vec::len), Some(1), "{found}");
    assert_eq!(found[0]["workload"], BROKEN);
    let said = world.agent()?.command("doctor", &[])?;
    assert_eq!(said.code(), Some(3), "{said:?}");
    let line = said.stdout.lines().find(|line| line.starts_with("FAIL canaries"));
    let line = line.with_context(|| format!("{said:?}"))?;
    assert!(line.contains("ci: ") && !line.contains("; "), "{line}");
    let shown = world.agent()?.command("status", &[])?;
    assert_eq!(shown.code(), Some(1), "{shown:?}");
    assert_record!(
        world,
        "error.kind" = "canary",
        "workload" = BROKEN,
        "outcome" = "failed"
    );

    // The others' calls go on, and so do their canaries: two a second between those of the broken one.
    for turn in 0..5 {
        for name in GOOD {
            assert_eq!(call(&world, name, &format!("/during{turn}"))?, 200, "{name}");
        }
    }
    assert_ne!(
        call(&world, BROKEN, "/during")?,
        200,
        "nothing holds it, and it got out"
    );
    let before = redirected(&world)?;
    wait::until("canaries of the others", wait::PATIENCE, || {
        (redirected(&world).ok()? >= before + 6).then_some(())
    })?;
    let (code, document) = agent_status(&world)?;
    assert_eq!(
        (code, document["canaries"].as_array().map(Vec::len)),
        (Some(1), Some(1)),
        "{document}"
    );

    end(breaking)?;
    findings(&world, false)?;
    assert!(doctor(&world)?.contains("no workload's canary failed"));
    for name in ALL {
        assert_eq!(call(&world, name, "/after")?, 200, "{name}");
    }
    // In all that time no other was taken for it.
    assert_eq!(recorded(&world)?, BTreeSet::from([BROKEN.to_owned()]));
    for words in [
        "the workload's canary failed",
        "the workload's canary arrives again",
    ] {
        assert_eq!(logged(&world, words)?, BTreeSet::from([BROKEN]), "{words}");
    }
    Ok(())
}
