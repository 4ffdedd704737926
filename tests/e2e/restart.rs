//! The whole agent, supervisor included, is restarted, killed and upgraded under load: connections wait instead of
//! failing, calls under way end well, each has its one record, and nobody else gets at the ports.

/// The same on a booted Debian, by systemd and dpkg.
mod installed;

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};
use harness::launch::wait_for;
use harness::{World, require, wait};
use serde_json::{Value, json};

use crate::audit::{agent_status, worker};
use crate::identity::API;
use crate::replace::{Load, Recorded, STREAM, Said, check_records, prepared, settled};

/// Connections that are each in the middle of an answer.
const STREAMS: usize = 200;
const MANY: &str = include_str!("restart/streams.py");
const LISTENER: &str = "callgate-billing-tcp4";

fn start() -> Result<World> {
    let mut world = prepared()?;
    world.keep_sockets()?;
    world.start_agent()?;
    Ok(world)
}

/// As `systemctl restart`: nothing is waited for but the old supervisor's end.
fn restart(world: &mut World) -> Result<()> {
    world.stop_agent()?;
    world.start_agent()
}

/// A client with [`STREAMS`] answers under way.
struct Streams {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Streams {
    /// Starts it as `command` does with these arguments; all answers have begun then.
    fn start(command: impl FnOnce(&[&str]) -> Command) -> Result<Self> {
        let count = STREAMS.to_string();
        let mut child = command(&["python3", "-c", MANY, API, "/streams/", &count])
            .stdout(Stdio::piped())
            .spawn()
            .context("can't start python3")?;
        let lines = BufReader::new(child.stdout.take().context("no output")?);
        let mut streams = Self { child, lines };
        let first = streams.line()?;
        ensure!(first["begun"] == STREAMS, "{first}");
        Ok(streams)
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }

    /// Waits for their end; every one has come whole.
    fn end_well(mut self) -> Result<()> {
        let whole = json!({"status": 200, "length": STREAM, "error": ""});
        for _ in 0..STREAMS {
            assert_eq!(self.line()?, whole);
        }
        ensure!(wait_for(&mut self.child, wait::PATIENCE)?.success());
        Ok(())
    }
}

fn all_answered(said: &[Said]) {
    let lost: Vec<_> = said.iter().filter(|one| one.status != 200).collect();
    assert!(lost.is_empty(), "{} of {} lost: {lost:?}", lost.len(), said.len());
}

#[test]
fn a_restart_under_load_loses_no_call_and_lets_two_hundred_streams_end() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = start()?;
    let (port, names) = (world.keeper()?.port(LISTENER)?, world.keeper()?.names());
    let load = Load::start_in(&world, 4, 4)?;
    let client = world.workload("billing")?;
    let streams = Streams::start(|args| client.command(args))?;
    let old = worker(&world)?;
    restart(&mut world)?;
    assert_ne!(worker(&world)?, old);
    assert_eq!(agent_status(&world)?.1["draining"], 1);
    load.goes_on()?;
    assert_eq!(world.keeper()?.port(LISTENER)?, port);
    assert_eq!(world.keeper()?.names(), names);
    all_answered(&load.end()?);
    streams.end_well()?;
    wait::until("the old worker's end", wait::PATIENCE, || {
        agent_status(&world)
            .ok()
            .filter(|(_, status)| status["draining"] == 0)
    })?;
    let (records, arrived) = settled(&world)?;
    check_records(&records, &arrived);
    assert_eq!(of_streams(&records), vec!["completed"; STREAMS]);
    Ok(())
}

/// How the streams ended, as recorded.
fn of_streams(records: &Recorded) -> Vec<String> {
    let of_them = records.iter().filter(|(path, _)| path.starts_with("/streams/"));
    of_them.map(|(_, of_it)| of_it[0].text("outcome")).collect()
}
