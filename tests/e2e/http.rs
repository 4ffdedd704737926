//! HTTP/1.1 end to end: clients that write their bytes themselves, an upstream that logs what arrives, and one
//! record for each call.

/// Bodies and heads on their way through, both ways.
mod bodies;
/// Which credentials the upstream sees.
mod credentials;
/// Upstreams that are down, wrong, slow or rude, told apart from denials.
mod faults;
/// Requests that two parsers could read differently, and those over a limit.
mod odd;
/// WebSocket.
mod upgrade;

use anyhow::{Context, Result};
use harness::{Record, Scripted, World, wait};
use serde_json::Value;

/// The scripted upstream's name; `client.py` has it too.
pub(crate) const RAW: &str = "raw.example.test";

pub(crate) const PRELUDE: &str = include_str!("http/client.py");

/// Everything but `/denied` is allowed.
pub(crate) const ALLOW: &str = r#"
[[workload]]
name = "billing"
[[workload.allow]]
name = "calls"
host = "raw.example.test"
private = true
[[workload.deny]]
name = "no"
host = "raw.example.test"
paths = "/denied/{rest..}"
"#;

/// A world with the scripted upstream over TLS and an agent with this policy and these settings.
pub(crate) fn start(policy: &str, settings: &str) -> Result<(World, Scripted)> {
    let mut world = World::new()?;
    let upstream = world.scripted(RAW, Some(RAW))?;
    world.policy("http.toml", policy)?;
    world.settings(settings);
    world.start_agent()?;
    Ok((world, upstream))
}

/// Runs Python lines as a managed process, behind `client.py`; gives what they print, one JSON value a line.
pub(crate) fn python(world: &World, lines: &str) -> Result<Vec<Value>> {
    let script = format!("{PRELUDE}{lines}");
    let output = world.workload("billing")?.run(["python3", "-c", &script])?.ok()?;
    let parse = |line| serde_json::from_str(line).with_context(|| format!("printed: {line}"));
    output.lines().map(parse).collect()
}

/// The records of calls, once there are `count`, in the order in which they began.
pub(crate) fn calls(world: &World, count: usize) -> Result<Vec<Record>> {
    let mut last = Vec::new();
    let found = wait::until("a record of each call", wait::PATIENCE, || {
        let records = world.records().ok()?;
        last = records
            .into_iter()
            .filter(|record| record.text("kind") == "call")
            .collect();
        last.sort_by_key(|record| record.text("id"));
        (last.len() >= count).then_some(())
    });
    found.with_context(|| format!("{} of {count} records: {last:#?}", last.len()))?;
    assert_eq!(last.len(), count, "{last:#?}");
    Ok(last)
}

/// The one record of the call for `path`.
pub(crate) fn record(world: &World, path: &str) -> Result<Record> {
    world.expect_record(&[("path", path.into()), ("kind", "call".into())])
}

/// Several fields of a record as one text, to compare at once.
pub(crate) fn shown(record: &Record, names: &[&str]) -> String {
    let values: Vec<_> = names.iter().map(|name| record.text(name)).collect();
    values.join(" ")
}
