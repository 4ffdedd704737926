//! The commands beside the agent: what they say when none runs, and the log as `callgate audit` shows it while it is
//! rotated.

use std::collections::BTreeSet;
use std::fs::{self, File};

use anyhow::{Context, Result};
use harness::{agent, require, wait};

use super::{LACKING, assert_says, world};
use crate::identity::API;

#[test]
fn without_an_agent_each_command_says_so_or_does_without() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = world()?;
    let words = [
        "the agent does not answer at",
        "run/admin.sock",
        "is callgate running?",
    ];
    assert_says(&world.callgate("status", &[])?, LACKING, &words);
    assert_says(&world.callgate("status", &["--json"])?, LACKING, &words);
    assert_says(&world.callgate("reload", &[])?, LACKING, &words);
    assert_says(&world.workload("billing")?.run(["true"])?, LACKING, &words);
    let log = ["can't read the audit log", "calls.jsonl", "--file names another"];
    assert_says(&world.callgate("audit", &["tail"])?, LACKING, &log);
    // These read the files alone.
    let url = format!("https://{API}/v1");
    let explain = world.callgate("explain", &["--workload", "billing", "GET", &url])?;
    assert_says(&explain, Some(0), &["allow"]);
    let denied = world.callgate("explain", &["--workload", "billing", "GET", "https://b.example/"])?;
    assert_says(&denied, Some(1), &["deny"]);
    let unknown = world.callgate("explain", &["--workload", "biling", "GET", &url])?;
    assert_says(&unknown, Some(2), &["did you mean \"billing\"?"]);
    let doctor = world.callgate("doctor", &[])?;
    assert!(doctor.code() < Some(2), "{doctor:?}");
    assert_says(&doctor, doctor.code(), &["bpffs", "privileges", "cgroup v2"]);
    Ok(())
}

#[test]
fn the_log_is_followed_over_its_rotation_and_shown_from_all_its_files() -> Result<()> {
    const BEFORE: usize = 500;
    const AFTER: usize = 20;
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = world()?;
    world.audit_settings("max_size_mib = 1\nkeep = 9");
    world.upstream(harness::Upstream::new(API))?;
    world.start_agent()?;
    let followed = world.dir().join("followed");
    let args = ["audit", "--config"].map(AsRef::as_ref);
    let tail = ["tail", "--follow", "--json", "-n", "0"].map(AsRef::as_ref);
    let (binary, config) = (agent::binary()?, world.config());
    let command = [binary.as_os_str()]
        .into_iter()
        .chain(args)
        .chain([config.as_os_str()])
        .chain(tail);
    let mut following = world
        .agent_place()?
        .command(command)
        .stdout(File::create(&followed)?)
        .spawn()
        .context("can't start `audit tail`")?;
    let call = |prefix: &str, count: usize| -> Result<()> {
        let url = format!("https://{API}/{prefix}/[1-{count}]/{}", "x".repeat(6000));
        let client = world.workload("billing")?;
        let reply = client.run(["curl", "-sS", "--fail", "-o", "/dev/null", &url])?;
        reply.ok().map(drop)
    };
    // More than a file of 1 MiB; records show the beginning of a long path.
    call("before", BEFORE)?;
    wait::until("the rotation", wait::PATIENCE, || {
        world.dir().join("audit/calls.jsonl.1").exists().then_some(())
    })?;
    call("after", AFTER)?;
    let calls = |text: &str| -> BTreeSet<String> {
        let path = |line: &str| {
            let record: serde_json::Value = serde_json::from_str(line).ok()?;
            record["path"].as_str().map(ToOwned::to_owned)
        };
        text.lines().filter_map(path).collect()
    };
    wait::until("all records in the followed log", wait::PATIENCE, || {
        let text = fs::read_to_string(&followed).ok()?;
        (calls(&text).len() == BEFORE + AFTER).then_some(())
    })?;
    following.kill()?;
    following.wait()?;
    let shown = world.callgate("audit", &["tail", "--json", "-n", "1000"])?.ok()?;
    assert_eq!(calls(&shown).len(), BEFORE + AFTER);
    let first = shown.lines().next().context("no record")?;
    let id = serde_json::from_str::<serde_json::Value>(first)?["id"]
        .as_str()
        .context("no id")?
        .to_owned();
    assert_says(
        &world.callgate("audit", &["show", &id])?,
        Some(0),
        &[&id, "billing"],
    );
    world.stop_agent()
}

#[test]
fn what_the_kernel_side_refuses_is_in_the_log_at_its_level() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = world()?;
    world.agent_env("CALLGATE_LOG", "callgate::supervisor=debug,info");
    world.start_agent()?;
    let send = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('192.0.2.1', 443))";
    let refused = world.workload("billing")?.run(["python3", "-c", send])?;
    assert_ne!(refused.code(), Some(0), "{refused:?}");
    wait::until("a line of the refusal", wait::PATIENCE, || {
        let log = world.agent().ok()?.log();
        let told = |line: &&str| line.contains("udp_not_allowed") && line.contains("192.0.2.1:443");
        log.lines()
            .find(told)
            .map(|line| assert!(line.contains("DEBUG"), "{line}"))
    })?;
    world.stop_agent()
}

#[test]
fn both_processes_log_from_the_level_that_is_set() -> Result<()> {
    const BROKEN: &str = "import socket, ssl
context = ssl.create_default_context()
with context.wrap_socket(socket.create_connection(('api.example.test', 443)), server_hostname='api.example.test') as tls:
    tls.sendall(b'GET /v1 HTTP/1.1\\r\\nHost: ')
";
    require!(Root, CgroupV2, Btf, Agent);
    for (level, is_told) in [("debug", true), ("error", false)] {
        let mut world = world()?;
        world.settings(&format!("log_level = \"{level}\""));
        world.upstream(harness::Upstream::new(API))?;
        world.start_agent()?;
        world.workload("billing")?.run(["python3", "-c", BROKEN])?.ok()?;
        // What the first client left was told by the time that this one has its answer.
        crate::audit::call(&world, "/v1")?;
        let log = world.agent()?.log();
        let of_worker = log.contains("DEBUG callgate::proxy") && log.contains("broke off");
        assert_eq!(of_worker, is_told, "{level}: {log}");
        assert_eq!(log.contains(" INFO "), is_told, "{level}: {log}");
        world.stop_agent()?;
    }
    Ok(())
}
