//! Every call has exactly one record, whoever is killed or hangs up; and the process that writes them holds nothing
//! that it does not need.

/// The log's disk is full, its file is taken away.
mod disk;
/// What the kernel decided, in floods.
mod kernel;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::launch::wait_for;
use harness::{Record, Upstream, World, assert_record, require, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::identity::{API, CODE, status, workload};

const CLIENTS: usize = 8;
const CALLS_EACH: usize = 25;
/// Far more than is sent before a test is over, at the rate of `/slow`.
const BIG: usize = 4 * 1024 * 1024;

/// A world with the API, `/slow` on it (an answer that takes minutes) and an agent that lets `billing` call it.
pub(crate) fn start() -> Result<World> {
    let mut world = World::new()?;
    let big = world.dir().join("upstream/big");
    fs::write(&big, vec![b'x'; BIG])?;
    let slow = format!("limit_rate 16k; alias {};", big.display());
    world.upstream(Upstream::new(API).location("= /slow", &slow))?;
    world.policy("audit.toml", &workload("billing", "", ""))?;
    world.start_agent()?;
    Ok(world)
}

/// The status that a managed curl gets for `path`, 0 for none.
pub(crate) fn call(world: &World, path: &str) -> Result<u16> {
    let url = format!("https://{API}{path}");
    let limit = wait::scaled(Duration::from_secs(5)).as_secs().to_string();
    let reply =
        world
            .workload("billing")?
            .run(["curl", "-sS", "-o", "/dev/null", "-w", CODE, "-m", &limit, &url])?;
    Ok(status(&reply))
}

/// Calls until the answer is this one; gives the path of the call that got it.
pub(crate) fn call_until(world: &World, prefix: &str, wanted: u16) -> Result<String> {
    let mut turn = 0;
    wait::until(&format!("an answer {wanted}"), wait::PATIENCE, || {
        turn += 1;
        let path = format!("{prefix}{turn}");
        match call(world, &path) {
            Ok(got) => (got == wanted).then_some(Ok(path)),
            Err(error) => Some(Err(error)),
        }
    })?
}

/// What `callgate status --json` says, whatever its exit code.
pub(crate) fn agent_status(world: &World) -> Result<(Option<i32>, Value)> {
    let output = world.agent()?.command("status", &["--json"])?;
    let document = serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))?;
    Ok((output.code(), document))
}

/// The worker's process id.
pub(crate) fn worker(world: &World) -> Result<u32> {
    let (_, document) = agent_status(world)?;
    let pid = document["worker_pid"].as_u64().context("no worker")?;
    Ok(u32::try_from(pid)?)
}

/// A managed curl that is in the middle of its answer.
pub(crate) fn download(world: &World) -> Result<Child> {
    let file = world.dir().join("download");
    let url = format!("https://{API}/slow");
    let mut command = world.workload("billing")?.command(["curl", "-sS", "-N", "-o"]);
    let child = command
        .arg(&file)
        .arg(&url)
        .stderr(Stdio::null())
        .spawn()
        .context("can't start curl")?;
    wait::until("the first bytes of the answer", wait::PATIENCE, || {
        fs::metadata(&file).ok().filter(|meta| meta.len() > 0)
    })?;
    Ok(child)
}

/// The one record of the download, after a later call's record shows that no other can be on its way.
pub(crate) fn only_download_record(world: &World, barrier: &str) -> Result<Record> {
    assert_record!(world, "path" = barrier);
    let records = world.records()?;
    let mut of_download = records.iter().filter(|record| record.text("path") == "/slow");
    let first = of_download.next().context("no record of the download")?;
    let second = of_download.next();
    ensure!(second.is_none(), "a second record of one call: {second:?}");
    Ok(first.clone())
}

fn proc_file(pid: u32, name: &str) -> Result<String> {
    let path: PathBuf = Path::new("/proc").join(pid.to_string()).join(name);
    fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))
}

/// The words after a line's name.
fn line_of<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_default().split_whitespace().collect()
}

#[test]
fn the_worker_holds_no_privilege_and_neither_process_dumps_core() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let (worker, supervisor) = (worker(&world)?, world.agent()?.pid());
    let status = proc_file(worker, "status")?;
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(line_of(&status, set), ["0000000000000000"], "{set}");
    }
    assert_eq!(line_of(&status, "NoNewPrivs:"), ["1"]);
    assert_eq!(line_of(&status, "Seccomp:"), ["2"]);
    assert_eq!(line_of(&status, "Uid:"), ["65534"; 4]);
    assert_eq!(line_of(&status, "Groups:"), [""; 0]);
    for pid in [worker, supervisor] {
        let limits = proc_file(pid, "limits")?;
        assert_eq!(
            line_of(&limits, "Max core file size"),
            ["0", "0", "bytes"],
            "{pid}"
        );
    }
    Ok(())
}

#[test]
fn records_equal_the_upstreams_log_under_load() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let client = world.workload("billing")?;
    let mut running = Vec::new();
    for number in 0..CLIENTS {
        let version = if number % 2 == 0 { "--http1.1" } else { "--http2" };
        let urls = format!("https://{API}/load/{number}/[1-{CALLS_EACH}]");
        let mut command = client.command(["curl", "-sS", "--fail", version, &urls]);
        running.push(
            command
                .stdout(Stdio::null())
                .spawn()
                .context("can't start curl")?,
        );
    }
    for child in &mut running {
        let ended = wait_for(child, wait::PATIENCE)?;
        assert!(ended.success(), "{ended}");
    }
    let total = CLIENTS * CALLS_EACH;
    let logged = wait::until("the upstream's log", wait::PATIENCE, || {
        world
            .server(API)
            .ok()?
            .log()
            .ok()
            .filter(|log| log.len() >= total)
    })?;
    let records = wait::until("a record of each call", wait::PATIENCE, || {
        world.records().ok().filter(|records| records.len() >= total)
    })?;
    let mut logged: Vec<_> = logged
        .iter()
        .map(|line| (line.method.clone(), line.uri.clone(), line.status.to_string()))
        .collect();
    let mut recorded: Vec<_> = records
        .iter()
        .filter(|record| record.text("kind") == "call" && record.text("outcome") == "completed")
        .map(|record| (record.text("method"), record.text("path"), record.text("status")))
        .collect();
    logged.sort();
    recorded.sort();
    assert_eq!(recorded.len(), total);
    assert_eq!(recorded, logged);
    for protocol in ["h1", "h2"] {
        let of_it = records
            .iter()
            .filter(|record| record.text("protocol") == protocol);
        assert_eq!(of_it.count(), total / 2, "{protocol}");
    }
    Ok(())
}

#[test]
fn a_client_that_hangs_up_leaves_one_aborted_record() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let mut client = download(&world)?;
    client.kill()?;
    client.wait()?;
    let record = assert_record!(world, "path" = "/slow", "outcome" = "aborted");
    assert_eq!(call(&world, "/after")?, 200);
    assert_eq!(only_download_record(&world, "/after")?, record);
    Ok(())
}

#[test]
fn a_killed_worker_leaves_one_aborted_record_and_the_next_one_serves() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let mut client = download(&world)?;
    let first = worker(&world)?;
    kill(Pid::from_raw(i32::try_from(first)?), Signal::SIGKILL)?;
    let ended = wait_for(&mut client, wait::PATIENCE)?;
    assert!(!ended.success(), "{ended}");
    let after = call_until(&world, "/after/", 200)?;
    assert_ne!(worker(&world)?, first);
    let record = only_download_record(&world, &after)?;
    assert_eq!(record.text("outcome"), "aborted");
    assert_eq!(record.text("workload"), "billing");
    Ok(())
}
