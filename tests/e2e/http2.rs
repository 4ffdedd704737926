//! HTTP/2 on both sides: many streams, bodies both ways and trailers; what breaks the protocol or floods is refused,
//! in HTTP/2's own words, and recorded.

/// Requests and frames that break HTTP/2, and clients that flood.
mod broken;
/// Streams that share a connection, end early or are taken back.
mod streams;

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use harness::scripted::Scripted;
use harness::{Record, World, wait};
use serde_json::Value;

use crate::identity::{API, workload};

const CLIENT: &str = include_str!("http2/client.py");
pub(crate) const SERVER: &str = include_str!("http2/server.py");

/// Allows all of two hosts but `/denied`.
fn policy() -> String {
    workload("billing", "", "")
        + "[[workload.allow]]\nname = \"other\"\nhost = \"other.example.test\"\nprivate = true\n"
        + "[[workload.deny]]\nname = \"no\"\nhost = \"api.example.test\"\npaths = \"/denied/{rest..}\"\n"
}

/// A world whose API speaks nothing but HTTP/2.
fn start(settings: &str) -> Result<(World, Scripted)> {
    let mut world = World::new()?;
    let server = world.scripted_by(SERVER, API, Some(API))?;
    world.policy("http2.toml", &policy())?;
    world.settings(settings);
    world.start_agent()?;
    Ok((world, server))
}

fn run(world: &World, cases: &[&str]) -> Result<BTreeMap<String, String>> {
    run_script(world, CLIENT, cases)
}

/// Runs cases of a script in one managed process, one after the other; what it got, by case.
pub(crate) fn run_script(world: &World, script: &str, cases: &[&str]) -> Result<BTreeMap<String, String>> {
    let fixed = ["/usr/bin/python3", "-c", script, API];
    let output = world.workload("billing")?.run(fixed.iter().chain(cases))?.ok()?;
    let read = |line: &str| {
        let line: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        Ok((text("case"), text("got")))
    };
    output.lines().map(read).collect()
}

/// The records of calls and connections, once there are `count`, by the order of their connections; no more may be
/// there.
fn records(world: &World, count: usize) -> Result<Vec<Record>> {
    let mut last = Vec::new();
    let found = wait::until("the records", wait::PATIENCE, || {
        last = world.records().ok()?;
        last.retain(|record| {
            record.text("kind") != "kernel_refusal" && !record.text("path").starts_with("/seen")
        });
        last.sort_by_key(|record| (record.text("connection"), record.text("id")));
        (last.len() >= count).then_some(())
    });
    let shown = || last.iter().map(|record| shown(record) + "\n").collect::<String>();
    found.with_context(|| format!("{} of {count} records:\n{}", last.len(), shown()))?;
    assert_eq!(last.len(), count, "{}", shown());
    Ok(last)
}

fn shown(record: &Record) -> String {
    ["kind", "path", "outcome", "reason", "status", "error.kind"]
        .map(|field| record.text(field))
        .join(" ")
}
