//! How soon a workload is served where it was not before.

use std::time::Duration;

use anyhow::{Result, ensure};
use harness::launch::Place;
use harness::{World, require};

use super::{curl, start};
use crate::identity::{API, status};

const FRESH: &str = include_str!("fresh.py");
/// Namespaces, one after the other; fewer than a workload is served in.
const TIMES: usize = 30;
/// Well over what is seen on a quiet machine, and under what looks twice a second would give.
const MEDIAN: Duration = Duration::from_millis(100);

/// In the workload's cgroup, but not by `callgate exec`, which would say where it is.
fn inside(world: &World) -> Place {
    Place::in_cgroup(world.cgroup().join("workloads/callgate-billing.slice"))
}

/// Milliseconds to the first connection and refusals before it, of each of [`TIMES`] namespaces.
fn waits(world: &World, loopback: &str) -> Result<Vec<(f64, u32)>> {
    let count = TIMES.to_string();
    let args = ["python3", "-c", FRESH, loopback, &count, "203.0.113.10", "443"];
    Ok(serde_json::from_str(&inside(world).run(args)?.ok()?)?)
}

fn check(mut waits: Vec<(f64, u32)>) -> Result<()> {
    waits.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    let (median, worst) = (waits[TIMES / 2].0, waits[TIMES - 1].0);
    let told = format!("median {median:.1} ms, worst {worst:.1} ms: {waits:?}");
    if std::env::var_os("CALLGATE_MEASURE").is_some() {
        anyhow::bail!(told);
    }
    ensure!(median < MEDIAN.as_secs_f64() * 1000.0, told);
    Ok(())
}

#[test]
fn a_fresh_namespace_is_served_soon_after_its_first_call_which_is_refused_on_record() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let waits = waits(&world, "up")?;
    let refused = waits.iter().any(|(_, refusals)| *refusals > 0);
    check(waits)?;
    let records = world.records()?;
    let told = |reason: &str| records.iter().any(|one| one.text("reason") == reason);
    ensure!(refused == told("no_listener"), "{records:?}");
    Ok(())
}

#[test]
fn a_namespace_whose_loopback_device_comes_up_late_is_served_soon_after_the_next_call() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    check(waits(&world, "late")?)
}

#[test]
fn a_workload_that_makes_namespaces_in_a_loop_keeps_nobody_else_waiting() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = super::with_upstream()?;
    world.policy("other.toml", &crate::identity::workload("other", "", ""))?;
    world.start_agent()?;
    let flood = inside(&world)
        .command(["python3", "-c", FRESH, "flood", "0", "203.0.113.10", "443"])
        .spawn()?;
    let _flood = Ends(flood);
    let other = Place::in_cgroup(world.cgroup().join("workloads/callgate-other.slice"));
    let count = TIMES.to_string();
    let args = ["python3", "-c", FRESH, "up", &count, "203.0.113.10", "443"];
    let waits = serde_json::from_str(&other.run(args)?.ok()?)?;
    check(waits)
}

/// A process that is killed when the test ends.
struct Ends(std::process::Child);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn a_command_of_exec_is_served_in_its_namespace_from_its_first_call() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = start()?;
    for _ in 0..5 {
        let room = world.room()?;
        let reply = curl(&world, &room.file, &["-4", &format!("https://{API}/who")])?;
        assert_eq!(status(&reply), 200, "{reply:?}");
        assert!(reply.stdout.contains(&format!("from={}\n", room.v4)), "{reply:?}");
    }
    assert!(
        world
            .records()?
            .iter()
            .all(|one| one.text("reason") != "no_listener")
    );
    Ok(())
}
