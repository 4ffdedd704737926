//! One worker after another, by request and by death: no call is lost that need not be, none goes out without a
//! record, and nothing opens in between.

/// Processes that are stopped by SIGSTOP.
pub(crate) mod stopped;

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Stdio};

use anyhow::{Context, Result, ensure};
use harness::launch::wait_for;
use harness::{World, assert_record, require, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::audit::{agent_status, call, call_until, download, only_download_record, worker};
use crate::identity::API;
use crate::load::{Load, STREAM, allowing, check_records, prepared, settled};

const SLOW: &str = include_str!("replace/slow.py");
/// What curl exits with when it could not connect.
const COULD_NOT_CONNECT: Option<i32> = Some(7);

/// A world with the API, which wants a token, and an agent that has it.
fn start() -> Result<World> {
    let mut world = prepared()?;
    world.start_agent()?;
    Ok(world)
}

pub(crate) fn signal(pid: u32, signal: Signal) -> Result<()> {
    kill(Pid::from_raw(i32::try_from(pid)?), signal).with_context(|| format!("can't send {signal}"))
}

/// SIGUSR2, until another worker serves.
pub(crate) fn replace(world: &World) -> Result<u32> {
    let before = worker(world)?;
    world.agent()?.signal(Signal::SIGUSR2)?;
    another(world, before)
}

fn another(world: &World, before: u32) -> Result<u32> {
    wait::until("another worker", wait::PATIENCE, || {
        worker(world).ok().filter(|pid| *pid != before)
    })
}

/// A curl that calls by HTTP/2, ever so often, until long after it was started, and gives up at the first failure.
fn many_by_http2(world: &World) -> Result<Child> {
    let urls = format!("https://{API}/load/http2/[1-300]");
    let args = [
        "curl",
        "-sS",
        "--http2",
        "--fail",
        "--fail-early",
        "--rate",
        "50/s",
        &urls,
    ];
    let mut command = world.workload("billing")?.command(args);
    command.stdout(Stdio::null()).spawn().context("can't start curl")
}

/// A curl in the middle of `/stream`, and the file that it writes.
pub(crate) fn stream(world: &World, name: &str, version: &str) -> Result<(Child, PathBuf)> {
    let file = world.dir().join(name);
    let url = format!("https://{API}/stream");
    let mut command = world
        .workload("billing")?
        .command(["curl", "-sS", "-N", version, "-o"]);
    let client = command.arg(&file).arg(&url).spawn().context("can't start curl")?;
    Ok((client, file))
}

pub(crate) fn length(file: &Path) -> u64 {
    fs::metadata(file).map_or(0, |file| file.len())
}

#[test]
fn workers_that_are_replaced_under_load_lose_no_call_and_their_streams_end_well() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let load = Load::start_in(&world, 4, 4)?;
    let mut multiplexed = many_by_http2(&world)?;
    let mut streams =
        [("h1", "--http1.1"), ("h2", "--http2")].map(|(name, version)| stream(&world, name, version));
    for stream in &mut streams {
        let (_, file) = stream.as_mut().map_err(|error| anyhow::anyhow!("{error:#}"))?;
        wait::until("the stream's first bytes", wait::PATIENCE, || {
            (length(file) > 0).then_some(())
        })?;
    }
    replace(&world)?;
    for (client, _) in streams.iter_mut().flatten() {
        assert!(
            client.try_wait()?.is_none(),
            "a stream was over before the worker was replaced"
        );
    }
    load.goes_on()?;
    for stream in streams {
        let (mut client, file) = stream?;
        let ended = wait_for(&mut client, wait::PATIENCE)?;
        assert!(ended.success(), "{}: {ended}", file.display());
        assert_eq!(length(&file), STREAM as u64);
    }
    for protocol in ["h1", "h2"] {
        assert_record!(
            world,
            "path" = "/stream",
            "outcome" = "completed",
            "protocol" = protocol
        );
    }
    for _ in 0..2 {
        replace(&world)?;
        load.goes_on()?;
    }
    let said = load.end()?;
    let lost: Vec<_> = said.iter().filter(|one| one.status != 200).collect();
    assert!(lost.is_empty(), "{} of {} lost: {lost:?}", lost.len(), said.len());
    let ended = wait_for(&mut multiplexed, wait::PATIENCE)?;
    assert!(ended.success(), "curl over HTTP/2: {ended}");
    wait::until("the old workers' end", wait::PATIENCE, || {
        agent_status(&world)
            .ok()
            .filter(|(_, status)| status["draining"] == 0)
    })?;
    let (mut records, mut arrived) = settled(&world)?;
    records.remove("/stream");
    arrived.retain(|line| line.uri != "/stream");
    check_records(&records, &arrived);
    for one in &said {
        let of_it = records
            .get(&one.path)
            .with_context(|| format!("no record of {one:?}"))?;
        assert_eq!(
            of_it
                .iter()
                .map(|record| record.text("outcome"))
                .collect::<Vec<_>>(),
            ["completed"]
        );
    }
    Ok(())
}

#[test]
fn a_worker_that_is_killed_twenty_times_under_load_opens_nothing() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let load = Load::start_in(&world, 4, 4)?;
    let mut serving = worker(&world)?;
    for _ in 0..20 {
        signal(serving, Signal::SIGKILL)?;
        serving = another(&world, serving)?;
    }
    load.goes_on()?;
    let said = load.end()?;
    let (records, arrived) = settled(&world)?;
    check_records(&records, &arrived);
    for one in &said {
        assert!([0, 200].contains(&one.status), "{one:?}");
        if one.status == 200 {
            let of_it = records
                .get(&one.path)
                .with_context(|| format!("no record of {one:?}"))?;
            // One whose answer was on its way when the worker died may count as aborted.
            assert!(
                ["completed", "aborted"].contains(&of_it[0].text("outcome").as_str()),
                "{of_it:?}"
            );
        }
    }
    Ok(())
}

/// Makes the next workers' in-flight tables impossible.
fn no_tables(world: &World, numbers: std::ops::RangeInclusive<u32>) -> Result<Vec<PathBuf>> {
    let supervisor = world.agent()?.pid();
    let path = |number| world.dir().join(format!("state/inflight-{supervisor}-{number}"));
    let paths: Vec<PathBuf> = numbers.map(path).collect();
    for path in &paths {
        fs::create_dir(path)?;
    }
    Ok(paths)
}

#[test]
fn a_worker_that_can_not_take_over_leaves_the_old_one_serving_and_status_says_so() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let first = worker(&world)?;
    let obstacles = no_tables(&world, 2..=2)?;
    world.agent()?.signal(Signal::SIGUSR2)?;
    let (code, document) = wait::until("status says so", wait::PATIENCE, || {
        agent_status(&world)
            .ok()
            .filter(|(_, document)| document["worker_error"].is_string())
    })?;
    assert_eq!(code, Some(1));
    assert!(
        document["worker_error"].to_string().contains("inflight"),
        "{document}"
    );
    assert!(world.agent()?.log().contains("the one that serves goes on"));
    assert_eq!(call(&world, "/still")?, 200);
    assert_eq!(worker(&world)?, first);
    for obstacle in obstacles {
        fs::remove_dir(obstacle)?;
    }
    assert_ne!(replace(&world)?, first);
    assert_eq!(agent_status(&world)?.0, Some(0));
    assert_eq!(call(&world, "/after")?, 200);
    Ok(())
}

#[test]
fn an_agent_whose_worker_died_refuses_until_another_can_be_started() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let first = worker(&world)?;
    let obstacles = no_tables(&world, 2..=60)?;
    signal(first, Signal::SIGKILL)?;
    let (code, _) = wait::until("no worker", wait::PATIENCE, || {
        agent_status(&world)
            .ok()
            .filter(|(_, document)| document["worker_pid"].is_null() && document["worker_error"].is_string())
    })?;
    assert_eq!(code, Some(1));
    wait::until("refused connections", wait::PATIENCE, || {
        let url = format!("https://{API}/meanwhile");
        let reply = world
            .workload("billing")
            .ok()?
            .run(["curl", "-sS", "-m", "1", &url])
            .ok()?;
        (reply.code() == COULD_NOT_CONNECT).then_some(())
    })?;
    for obstacle in obstacles {
        fs::remove_dir(obstacle)?;
    }
    call_until(&world, "/after/", 200)?;
    assert_eq!(agent_status(&world)?.0, Some(0));
    let arrived = world.server(API)?.log()?;
    assert!(
        !arrived.iter().any(|line| line.uri == "/meanwhile"),
        "{arrived:?}"
    );
    Ok(())
}

/// A client that is held at a point of its connection.
struct Held {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Held {
    fn start(world: &World, point: &str) -> Result<Self> {
        let mut child = world
            .workload("billing")?
            .command(["python3", "-c", SLOW, API, point])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let lines = BufReader::new(child.stdout.take().context("no output")?);
        let mut held = Self { child, lines };
        while held.line()? != point {}
        Ok(held)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.lines.read_line(&mut line)? > 0, "the client ended");
        Ok(line.trim_end().to_owned())
    }

    fn go_on(&mut self) -> Result<()> {
        writeln!(self.child.stdin.take().context("no input")?).context("the client ended")
    }

    fn end(mut self) -> Result<String> {
        let line = self.line()?;
        wait_for(&mut self.child, wait::PATIENCE)?;
        Ok(line)
    }
}

#[test]
fn a_connection_that_the_old_worker_took_is_served_whatever_its_phase() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let points = ["tcp", "tls", "request"];
    let mut held = points.map(|point| Held::start(&world, point));
    replace(&world)?;
    for held in held.iter_mut().flatten() {
        held.go_on()?;
    }
    for (point, held) in points.into_iter().zip(held) {
        let answer = held?.end().with_context(|| point)?;
        assert_eq!(answer, "200 close", "{point}");
        let path = format!("/held/{point}");
        assert_record!(world, "path" = path.as_str(), "outcome" = "completed");
    }
    wait::until("the old worker's end", wait::PATIENCE, || {
        agent_status(&world)
            .ok()
            .filter(|(_, status)| status["draining"] == 0)
    })?;
    Ok(())
}

#[test]
fn while_an_old_worker_drains_callers_are_served_and_a_new_policy_reaches_its_calls() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let mut client = download(&world)?;
    replace(&world)?;
    assert_eq!(call(&world, "/beside")?, 200);
    assert_eq!(agent_status(&world)?.1["draining"], 1);
    world.policy("audit.toml", &allowing("paths = [\"/after\"]"))?;
    world.reload()?;
    let ended = wait_for(&mut client, wait::PATIENCE)?;
    assert!(!ended.success(), "{ended}");
    assert_eq!(call(&world, "/after")?, 200);
    let record = only_download_record(&world, "/after")?;
    assert_eq!(record.text("reason"), "revoked");
    assert_eq!(record.text("outcome"), "denied");
    Ok(())
}
