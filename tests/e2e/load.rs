//! Clients that call without a pause while the agent is changed under them, and what must be true of the records then.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use harness::launch::wait_for;
use harness::{Record, Upstream, World, assert_record, wait};
use serde::Deserialize;

use crate::audit::call_until;
use crate::identity::{API, workload};

const LOAD: &str = include_str!("load/load.py");
pub(crate) const TOKEN: &str = "tok_replace_1";
/// The body of `/stream`, which takes 8 s: longer than it takes to replace a worker, shorter than it may drain.
pub(crate) const STREAM: usize = 128 * 1024;

/// A world with the API, which wants a token, and an agent that has it and is still to be started.
pub(crate) fn prepared() -> Result<World> {
    let mut world = World::new()?;
    let (big, stream) = (
        world.dir().join("upstream/big"),
        world.dir().join("upstream/stream"),
    );
    fs::write(&big, vec![b'x'; 4 * 1024 * 1024])?;
    fs::write(&stream, vec![b'x'; STREAM])?;
    let slowly = |file: PathBuf| format!("limit_rate 16k; alias {};", file.display());
    let api = Upstream::new(API)
        .bearer(TOKEN, "acme")
        .location("= /slow", &slowly(big))
        .location("= /stream", &slowly(stream.clone()))
        .location("~ ^/streams/", &slowly(stream));
    world.upstream(api)?;
    let file = world.secret("token", TOKEN)?;
    let credential = format!(
        "[credential.token]\nhosts = [\"{API}:443\"]\nscheme = \"bearer\"\nsource = {{ file = {file:?} }}\n"
    );
    world.policy("credential.toml", &credential)?;
    world.policy("audit.toml", &allowing(""))?;
    // A client that is held before it says anything must not time out.
    world.settings("[limits]\ndetect_seconds = 60");
    Ok(world)
}

pub(crate) fn allowing(more: &str) -> String {
    workload("billing", "", &format!("credential = \"token\"\n{more}"))
}

/// Clients that call without a pause.
pub(crate) struct Load {
    child: Child,
    said: PathBuf,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Said {
    pub(crate) path: String,
    pub(crate) status: u16,
    #[serde(default)]
    error: String,
}

impl Load {
    pub(crate) fn start_in(world: &World, kept: u32, fresh: u32) -> Result<Self> {
        let client = world.workload("billing")?;
        Self::start(world, |args| client.command(args), kept, fresh)
    }

    /// Starts `kept` that keep their connection and `fresh` that make one for each call, as `command` does with these
    /// arguments.
    pub(crate) fn start(
        world: &World,
        command: impl FnOnce(&[&str]) -> Command,
        kept: u32,
        fresh: u32,
    ) -> Result<Self> {
        let said = world.dir().join("load");
        let child = command(&["python3", "-c", LOAD, API])
            .args([kept.to_string(), fresh.to_string()])
            .stdin(Stdio::piped())
            .stdout(File::create(&said)?)
            .spawn()
            .context("can't start python3")?;
        let load = Self { child, said };
        load.goes_on()?;
        Ok(load)
    }

    /// Waits for twenty more answers.
    pub(crate) fn goes_on(&self) -> Result<()> {
        let answered =
            || -> Result<usize> { Ok(self.said()?.iter().filter(|one| one.status == 200).count()) };
        let before = answered()?;
        wait::until("answers", wait::PATIENCE, || {
            answered().ok().filter(|now| *now >= before + 20)
        })?;
        Ok(())
    }

    /// Waits until connections are refused.
    pub(crate) fn is_refused(&self) -> Result<()> {
        let refused = |one: &Said| one.status == 0 && one.error.contains("Refused");
        wait::until("refused connections", wait::PATIENCE, || {
            self.said().ok()?.iter().any(refused).then_some(())
        })
    }

    fn said(&self) -> Result<Vec<Said>> {
        let text = fs::read_to_string(&self.said)?;
        let whole = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
        whole
            .lines()
            .map(|line| Ok(serde_json::from_str(line)?))
            .collect()
    }

    pub(crate) fn end(mut self) -> Result<Vec<Said>> {
        drop(self.child.stdin.take());
        let ended = wait_for(&mut self.child, wait::PATIENCE)?;
        ensure!(ended.success(), "{ended}");
        self.said()
    }
}

/// The records of calls by path; of those that ended before their request came by connection.
pub(crate) type Recorded = BTreeMap<String, Vec<Record>>;

/// What is recorded and what the upstream has logged, once all is.
pub(crate) fn settled(world: &World) -> Result<(Recorded, Vec<harness::Access>)> {
    let barrier = call_until(world, "/barrier/", 200)?;
    assert_record!(world, "path" = barrier.as_str());
    Ok((by_path(world.records()?), world.server(API)?.log()?))
}

pub(crate) fn by_path(records: Vec<Record>) -> Recorded {
    let mut calls = Recorded::new();
    for record in records {
        if record.text("kind") == "call" {
            let unread = || format!("connection {}", record.text("connection"));
            let path = record.field("path").as_str().map_or_else(unread, str::to_owned);
            calls.entry(path).or_default().push(record);
        }
    }
    calls
}

/// Nothing went past the agent, and nothing that went through it is without its one record.
pub(crate) fn check_records(records: &Recorded, arrived: &[harness::Access]) {
    for line in arrived {
        let of_it = records.get(&line.uri).map_or(&[][..], Vec::as_slice);
        assert_eq!(of_it.len(), 1, "records of {line:?}: {of_it:?}");
        let is_stream = ["/slow", "/stream"]
            .iter()
            .any(|start| line.uri.starts_with(start));
        if !is_stream {
            assert_eq!(line.authorization, format!("Bearer {TOKEN}"), "{line:?}");
        }
    }
    let mut arrivals = BTreeMap::<&str, usize>::new();
    for line in arrived {
        *arrivals.entry(&line.uri).or_default() += 1;
    }
    for (path, of_it) in records {
        assert_eq!(of_it.len(), 1, "{path}: {of_it:?}");
        let times = arrivals.get(path.as_str()).copied().unwrap_or_default();
        assert!(times <= 1, "{path} arrived {times} times");
    }
}
