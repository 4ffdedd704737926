//! One workload that takes all it can get is refused clearly and on record, and another notices nothing.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::launch::wait_for;
use harness::{Record, Upstream, World, require, wait};

use crate::audit::agent_status;
use crate::identity::{API, workload};

const FLOOD: &str = include_str!("quota/flood.py");
/// In seconds; the machine may be busy, so this only tells waiting for others' limits from not waiting.
const NORMAL: f64 = 5.0;

/// Cgroups below one workload's.
const CGROUPS: usize = 20_000;
/// What they may add to ten answers of the agent's: a thread that goes through them all takes many times as long.
const HARDLY: Duration = Duration::from_millis(250);

/// A world with the API, and an agent that lets `greedy` and `modest` call it within these limits.
fn start(limits: &str) -> Result<World> {
    let mut world = World::new()?;
    let big = world.dir().join("upstream/big");
    fs::write(&big, vec![b'x'; 1024 * 1024])?;
    let slow = format!("limit_rate 1k; alias {};", big.display());
    // nginx reads all of the body before it passes a request on, here to nobody.
    let upload = "proxy_pass http://127.0.0.1:1;";
    world.upstream(
        Upstream::new(API)
            .location("= /slow", &slow)
            .location("= /upload", upload),
    )?;
    world.policy("greedy.toml", &workload("greedy", "", ""))?;
    world.policy("modest.toml", &workload("modest", "", ""))?;
    // What is held must not time out while the test looks at it.
    world.settings(&format!("[limits]\ndetect_seconds = 60\n{limits}"));
    world.start_agent()?;
    Ok(world)
}

/// A process of `greedy` that holds what it got.
struct Flood {
    child: Child,
    got: BTreeMap<String, u64>,
}

impl Flood {
    fn start(world: &World, what: &str, count: u32) -> Result<Self> {
        let mut command = world
            .workload("greedy")?
            .command(["python3", "-c", FLOOD, API, what]);
        let mut child = command
            .arg(count.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("can't start python3")?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("no output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let got = serde_json::from_str(&line).with_context(|| format!("printed: {line}"))?;
        Ok(Self { child, got })
    }

    fn got(&self, what: &str) -> u64 {
        self.got.get(what).copied().unwrap_or(0)
    }

    fn end(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        let ended = wait_for(&mut self.child, wait::PATIENCE)?;
        ensure!(ended.success(), "{ended}");
        Ok(())
    }
}

/// The statuses that `who` gets, each in normal time.
fn calls(world: &World, who: &str, count: u32) -> Result<Vec<String>> {
    let urls = format!("https://{API}/{who}/[1-{count}]");
    let format = "%{http_code} %{time_total}\n";
    // A connection for each: the floods are of connections too.
    let args = [
        "curl",
        "-sS",
        "-H",
        "Connection: close",
        "--http1.1",
        "-o",
        "/dev/null",
        "-w",
        format,
        &urls,
    ];
    let output = world.workload(who)?.run(args)?;
    let answer = |line: &str| {
        let (status, time) = line.split_once(' ').with_context(|| format!("{output:?}"))?;
        ensure!(time.parse::<f64>()? < NORMAL, "{who} waited: {}", output.stdout);
        Ok(status.to_owned())
    };
    output.stdout.lines().map(answer).collect()
}

fn modest_is_served(world: &World) -> Result<()> {
    assert_eq!(calls(world, "modest", 5)?, ["200"; 5]);
    Ok(())
}

/// Waits until records of this kind, all of them `greedy`'s refusals, stand for so many.
fn refusals(world: &World, kind: &str, reason: &str, count: u64) -> Result<Vec<Record>> {
    let stands_for = |record: &Record| record.field("count").as_u64().unwrap_or(1);
    wait::until(&format!("{count} {kind} refusals"), wait::PATIENCE, || {
        let mut records = world.records().ok()?;
        records.retain(|record| record.text("kind") == kind && record.text("reason") == reason);
        assert!(
            records.iter().all(|record| record.text("workload") == "greedy"),
            "{records:?}"
        );
        (records.iter().map(stands_for).sum::<u64>() >= count).then_some(records)
    })
}

/// Once what was held is let go of, its holder is served again.
fn greedy_is_served_again(world: &World) -> Result<()> {
    wait::until("greedy's turn", wait::PATIENCE, || {
        (calls(world, "greedy", 1).ok()? == ["200"]).then_some(())
    })
}

#[test]
fn a_flood_of_connections_is_refused_beyond_the_limit_and_only_for_who_makes_it() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start("connections = 20\n")?;
    let flood = Flood::start(&world, "connections", 60)?;
    assert_eq!(
        (flood.got("held"), flood.got("refused")),
        (20, 40),
        "{:?}",
        flood.got
    );
    modest_is_served(&world)?;
    let refused = refusals(&world, "connection", "limit", 40)?;
    assert_eq!(refused.len(), 40);
    flood.end()?;
    greedy_is_served_again(&world)
}

#[test]
fn a_storm_of_connections_and_calls_keeps_nobody_else_waiting() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start("")?;
    let flood = Flood::start(&world, "storm", 8)?;
    assert_eq!(flood.got("begun"), 8);
    for _ in 0..3 {
        modest_is_served(&world)?;
    }
    flood.end()?;
    greedy_is_served_again(&world)
}

#[test]
fn slow_uploads_and_downloads_over_the_limit_get_429_and_only_for_who_makes_them() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start("calls = 8\n")?;
    let uploads = Flood::start(&world, "uploads", 5)?;
    assert_eq!(uploads.got("held"), 5, "{:?}", uploads.got);
    let downloads = Flood::start(&world, "downloads", 20)?;
    assert_eq!(
        (downloads.got("200"), downloads.got("429")),
        (3, 17),
        "{:?}",
        downloads.got
    );
    modest_is_served(&world)?;
    refusals(&world, "unrecorded", "limit", 17)?;
    let arrived = world.server(API)?.log()?;
    assert!(
        arrived.iter().all(|line| line.uri.starts_with("/modest/")),
        "{arrived:?}"
    );
    uploads.end()?;
    downloads.end()?;
    greedy_is_served_again(&world)
}

#[test]
fn calls_over_the_buffers_of_a_workload_get_429_each_with_its_record() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    // 32 connections and calls.
    let world = start("buffers_mib = 1\n")?;
    let flood = Flood::start(&world, "downloads", 24)?;
    let (served, refused) = (flood.got("200"), flood.got("429"));
    // One that finds not even room for itself is closed.
    let closed = 24 - served - refused;
    assert!(served >= 8 && refused >= 1 && closed < 16, "{:?}", flood.got);
    modest_is_served(&world)?;
    let records = refusals(&world, "call", "limit", refused)?;
    assert_eq!(records.len() as u64, refused);
    assert!(
        records.iter().all(|record| record.text("status") == "429"),
        "{records:?}"
    );
    if closed > 0 {
        assert_eq!(
            refusals(&world, "connection", "limit", closed)?.len() as u64,
            closed
        );
    }
    flood.end()?;
    greedy_is_served_again(&world)
}

#[test]
fn what_an_http2_connection_gathers_counts_once_beside_its_calls() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    // 32 connections and calls.
    let world = start("buffers_mib = 1\n")?;
    let urls = format!("https://{API}/slow?[1-40]");
    let fixed = "curl -sS --http2 -Z --parallel-max 40 -m 3 -o /dev/null -w %{http_code}/%{http_version}\\n";
    let told = world
        .workload("greedy")?
        .run(fixed.split(' ').chain([urls.as_str()]))?;
    let count = |answer: &str| told.stdout.lines().filter(|line| *line == answer).count();
    // Beside the connection and what it gathers.
    assert_eq!((count("200/2"), count("429/2")), (30, 10), "{told:?}");
    modest_is_served(&world)?;
    greedy_is_served_again(&world)
}

#[test]
fn a_flood_of_connects_that_the_kernel_refuses_makes_few_records_that_count_them() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start("")?;
    let flood = Flood::start(&world, "ports", 3000)?;
    assert_eq!(flood.got("refused"), 3000, "{:?}", flood.got);
    modest_is_served(&world)?;
    flood.end()?;
    let refused = wait::until("all of them on record", wait::PATIENCE, || {
        let mut records = world.records().ok()?;
        records
            .retain(|record| record.text("kind") == "kernel_refusal" && record.text("workload") == "greedy");
        let counts = records.iter().filter_map(|record| record.field("count").as_u64());
        (counts.sum::<u64>() >= 3000).then_some(records)
    })?;
    let single = refused
        .iter()
        .filter(|record| record.text("reason") == "port_not_named" && record.text("comm") == "python3");
    assert!(
        single.count() >= 10 && refused.len() < 150,
        "{} records",
        refused.len()
    );
    Ok(())
}

/// What the thread that answers spends on reading the policy again and saying how the agent is, ten times. Its own time, not
/// the clock's: the machine may be busy.
fn answers(world: &World) -> Result<Duration> {
    let agent = world.agent()?.pid();
    let spent = || -> Result<Duration> {
        // Nanoseconds on a CPU come first (Documentation/scheduler/sched-stats.rst).
        let told = fs::read_to_string(format!("/proc/{agent}/task/{agent}/schedstat"))?;
        let first = told.split(' ').next().context("no time")?;
        Ok(Duration::from_nanos(first.parse()?))
    };
    let before = spent()?;
    for _ in 0..10 {
        world.reload()?;
        agent_status(world)?;
    }
    Ok(spent()? - before)
}

#[test]
fn a_workload_with_ever_so_many_cgroups_keeps_nobody_waiting_for_the_agent() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start("")?;
    let slice = world.cgroup().join("workloads/callgate-greedy.slice");
    let before = answers(&world)?;
    for number in 0..CGROUPS {
        fs::create_dir(slice.join(format!("delegated-{number}")))?;
    }
    let after = answers(&world)?;
    if std::env::var_os("CALLGATE_MEASURE").is_some() {
        anyhow::bail!("{before:?} before, {after:?} after");
    }
    ensure!(after < before + HARDLY, "{before:?} before, {after:?} after");
    modest_is_served(&world)
}
