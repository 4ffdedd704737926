//! What does not end in the time that a restart gives it: streams are cut off, a worker is killed.

use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use harness::launch::wait_for;
use harness::{Upstream, World, assert_record, require, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{is_gone, restart};
use crate::audit::{agent_status, call, download, only_download_record, worker};
use crate::identity::API;
use crate::load::{allowing, prepared};

/// How long calls may go on after a restart.
const DRAIN: Duration = Duration::from_secs(20);
/// How long a worker is let be that should have ended by itself.
const LONGEST: Duration = Duration::from_secs(27);
/// How long the agent runs before it is started again.
const BETWEEN: Duration = Duration::from_secs(9);
/// What a busy machine may add.
const SPARE: Duration = Duration::from_secs(5);
const TUNNELLED: &str = "tunnelled.example.test";
/// curl's exit code after `-m`.
const TIMED_OUT: Option<i32> = Some(28);

/// A world with answers that take minutes, as calls of both protocols and through a tunnel.
fn start() -> Result<World> {
    let mut world = prepared()?;
    let big = world.dir().join("upstream/big");
    let slow = format!("limit_rate 16k; alias {};", big.display());
    world.upstream(Upstream::new(TUNNELLED).location("= /slow", &slow))?;
    let tunnel =
        format!("\n[[workload.tunnel]]\nname = \"tunnelled\"\nhost = {TUNNELLED:?}\nprivate = true\n");
    world.policy("audit.toml", &allowing(&tunnel))?;
    world.keep_sockets()?;
    world.start_agent()?;
    Ok(world)
}

/// A managed curl in the middle of `/slow`, which says so if it waits in vain.
fn stream(world: &World, host: &str, option: &str) -> Result<Child> {
    let file = world.dir().join(format!("{host}{option}"));
    let url = format!("https://{host}/slow");
    let mut command = world
        .workload("billing")?
        .command(["curl", "-sSk", "-N", "-m", "60", option, "-o"]);
    let child = command
        .arg(&file)
        .arg(&url)
        .stderr(Stdio::null())
        .spawn()
        .context("can't start curl")?;
    wait::until("the first bytes of the answer", wait::PATIENCE, || {
        std::fs::metadata(&file).ok().filter(|meta| meta.len() > 0)
    })?;
    Ok(child)
}

#[test]
#[ignore = "takes half a minute: `cargo xtask test --all`"]
fn streams_that_do_not_end_are_cut_off_after_twenty_seconds_each_with_its_record() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = start()?;
    let kinds = [(API, "--http1.1"), (API, "--http2"), (TUNNELLED, "--http1.1")];
    let mut streams = Vec::new();
    for (host, option) in kinds {
        streams.push(stream(&world, host, option)?);
    }
    let old = worker(&world)?;
    let since = Instant::now();
    restart(&mut world)?;
    for (child, kind) in streams.iter_mut().zip(kinds) {
        let ended = wait_for(child, DRAIN + wait::PATIENCE)?;
        let took = since.elapsed();
        assert!(!ended.success() && ended.code() != TIMED_OUT, "{kind:?}: {ended}");
        assert!((DRAIN..DRAIN + SPARE).contains(&took), "{kind:?}: {took:?}");
    }
    is_gone(old)?;
    assert_eq!(call(&world, "/after")?, 200);
    assert_record!(world, "path" = "/after");
    for protocol in ["h1", "h2"] {
        let record = assert_record!(
            world,
            "path" = "/slow",
            "protocol" = protocol,
            "outcome" = "aborted"
        );
        assert!(
            record.field("error").to_string().contains("draining"),
            "{record:?}"
        );
    }
    assert_record!(world, "kind" = "tunnel", "outcome" = "aborted");
    assert_eq!(agent_status(&world)?.1["draining"], 0);
    Ok(())
}

#[test]
#[ignore = "takes half a minute: `cargo xtask test --all`"]
fn a_worker_that_was_left_and_does_not_end_is_killed_and_its_calls_are_recorded_once() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = start()?;
    let mut client = download(&world)?;
    let old = worker(&world)?;
    world.stop_agent()?;
    // Neither its own deadline nor the kernel's alarm reaches it now.
    kill(Pid::from_raw(i32::try_from(old)?), Signal::SIGSTOP)?;
    let since = Instant::now();
    world.start_agent()?;
    assert_eq!(call(&world, "/beside")?, 200);
    // Its time does not begin anew with the agent.
    for _ in 0..2 {
        sleep(BETWEEN);
        restart(&mut world)?;
    }
    // The workers of the restarts in between end by themselves.
    wait::until("only the stopped worker", wait::PATIENCE, || {
        let (_, status) = agent_status(&world).ok()?;
        (status["draining"] == 1).then_some(())
    })?;
    let ended = wait_for(&mut client, LONGEST + wait::PATIENCE)?;
    let took = since.elapsed();
    assert!(!ended.success(), "{ended}");
    assert!((LONGEST..LONGEST + SPARE).contains(&took), "{took:?}");
    is_gone(old)?;
    assert!(world.agent()?.log().contains("its time is over"));
    assert_eq!(call(&world, "/after")?, 200);
    assert_record!(world, "path" = "/slow");
    let record = only_download_record(&world, "/after")?;
    assert_eq!(record.text("outcome"), "aborted");
    Ok(())
}
