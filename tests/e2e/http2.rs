//! HTTP/2 on both sides: many streams, bodies both ways and trailers; what breaks the protocol or floods is refused,
//! in HTTP/2's own words, and recorded.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use harness::scripted::Scripted;
use harness::{Record, Upstream, World, assert_record, require, wait};
use serde_json::Value;

use crate::identity::{API, workload};

const CLIENT: &str = include_str!("http2/client.py");
const SERVER: &str = include_str!("http2/server.py");

/// A world whose API speaks nothing but HTTP/2.
fn start(name: &str, settings: &str) -> Result<(World, Scripted)> {
    let mut world = World::new(name)?;
    let server = world.scripted_by(SERVER, API, Some(API))?;
    let other = "[[workload.allow]]\nname = \"other\"\nhost = \"other.example.test\"\nprivate = true\n";
    world.policy("http2.toml", &(workload("billing", "", "") + other))?;
    world.settings(settings);
    world.start_agent()?;
    Ok((world, server))
}

/// Runs the client's cases in one managed process; what it got, by case.
fn run(world: &World, cases: &[&str]) -> Result<BTreeMap<String, String>> {
    let fixed = ["/usr/bin/python3", "-c", CLIENT, API];
    let output = world.workload("billing")?.run(fixed.iter().chain(cases))?.ok()?;
    let read = |line: &str| {
        let line: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        Ok((text("case"), text("got")))
    };
    output.lines().map(read).collect()
}

/// The records of this kind, once there are `count`.
fn records(world: &World, kind: &str, count: usize) -> Result<Vec<Record>> {
    wait::until("the records", wait::PATIENCE, || {
        let records = world.records().ok()?;
        let found: Vec<_> = records
            .into_iter()
            .filter(|record| record.text("kind") == kind)
            .collect();
        (found.len() >= count).then_some(found)
    })
}

#[test]
fn probe_everything() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let (world, _server) = start("probe_everything", "[limits]\nh2_resets = 10\n")?;
    for case in [
        "mixed","settings","bomb","leave","back-head","stream-0","even-stream","data-0","data-idle","reset-idle","window-0","lone-continuation","bad-hpack",
        "streams",
        "one-too-many",
        "coalesced",
        "aborted",
        "server-reset",
        "early",
        "rapid",
        "resets",
        "continuation",
        "pings",
        "large",
        "huge",
        "fields",
        "connect",
        "trace",
        "no-path",
        "empty-path",
        "relative-path",
        "no-method",
        "two-methods",
        "two-authorities",
        "unknown-pseudo",
        "late-pseudo",
        "status",
        "upper-case",
        "connection",
        "transfer-encoding",
        "te",
        "line-break",
        "http-scheme",
        "odd-scheme",
        "no-authority",
        "host-alone",
        "host-differs",
        "user",
        "short-body",
    ] {
        let before = world.records()?.len();
        let got = run(&world, &[case]);
        std::thread::sleep(std::time::Duration::from_millis(120));let after = world.records()?;
        eprintln!("{case}: {got:?}");
        for record in after.iter().skip(before).filter(|r| r.text("kind") != "kernel_refusal").take(6) {
            eprintln!(
                "     {} {} {} {} {} {}",
                record.text("kind"),
                record.text("path"),
                record.text("outcome"),
                record.text("reason"),
                record.text("status"),
                record.text("error.message")
            );
        }
        eprintln!("     {}", after.iter().skip(before).filter(|r| r.text("kind") != "kernel_refusal").count());
    }
    Ok(())
}
