//! Connections of every kind that are under way when the agent is restarted: HTTP/2, WebSocket, server-sent events, a
//! tunnel.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;

use anyhow::{Context, Result};
use harness::launch::wait_for;
use harness::{Scripted, Upstream, World, assert_record, require, wait};
use serde_json::{Value, json};

use super::restart;
use crate::audit::{agent_status, worker};
use crate::http::{PRELUDE, RAW};
use crate::load::{STREAM, allowing, prepared};
use crate::replace::{length, stream};

const HELD: &str = include_str!("kinds.py");
const TUNNELLED: &str = "tunnel.example.test";

fn start() -> Result<(World, Scripted)> {
    let mut world = prepared()?;
    let raw = world.scripted(RAW, Some(RAW))?;
    let slowly = format!("limit_rate 16k; alias {}/upstream/stream;", world.dir().display());
    world.upstream(Upstream::new(TUNNELLED).location("= /stream", &slowly))?;
    let more = format!(
        "[[workload.allow]]\nname = \"raw\"\nhost = {RAW:?}\nprivate = true\n\
         [[workload.tunnel]]\nname = \"unread\"\nhost = {TUNNELLED:?}\nprivate = true\n"
    );
    world.policy("audit.toml", &(allowing("") + &more))?;
    world.keep_sockets()?;
    world.start_agent()?;
    Ok((world, raw))
}

#[test]
fn connections_of_every_kind_that_are_under_way_end_well_after_a_restart() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let (mut world, _raw) = start()?;
    let authority = world.dir().join("upstream/ca.pem");
    let mut held = world
        .workload("billing")?
        .command(["python3", "-c", &format!("{PRELUDE}{HELD}")])
        .arg(authority)
        .arg(TUNNELLED)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(held.stdout.take().context("no output")?).lines();
    assert_eq!(lines.next().transpose()?.as_deref(), Some("begun"));
    let (mut multiplexed, file) = stream(&world, "h2", "--http2")?;
    wait::until("the stream's first bytes", wait::PATIENCE, || {
        (length(&file) > 0).then_some(())
    })?;
    let old = worker(&world)?;
    restart(&mut world)?;
    assert_ne!(worker(&world)?, old);
    assert_eq!(agent_status(&world)?.1["draining"], 1);
    assert!(multiplexed.try_wait()?.is_none(), "it was over before");
    held.stdin.take().context("no input")?.write_all(b"go\n")?;
    let ends: Value = serde_json::from_str(&lines.next().transpose()?.context("it ended")?)?;
    assert_eq!(ends, json!(["came back", "whole", STREAM]));
    assert!(wait_for(&mut held, wait::PATIENCE)?.success());
    assert!(wait_for(&mut multiplexed, wait::PATIENCE)?.success());
    assert_eq!(fs::metadata(file)?.len(), STREAM as u64);
    super::is_gone(old)?;
    for (path, protocol) in [("/ws/kept", "ws"), ("/events/kept", "h1"), ("/stream", "h2")] {
        assert_record!(
            world,
            "path" = path,
            "protocol" = protocol,
            "outcome" = "completed"
        );
    }
    assert_record!(
        world,
        "kind" = "tunnel",
        "sni" = TUNNELLED,
        "outcome" = "completed"
    );
    Ok(())
}
