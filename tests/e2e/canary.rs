//! A connect from inside each workload proves that it is captured; what breaks that where nothing else looks is a finding
//! until it is mended.

mod installed;
mod several;

use std::path::Path;
use std::process::{Child, Stdio};

use anyhow::{Context, Result};
use harness::launch;
use harness::sandbox::Room;
use harness::{Record, Upstream, World, assert_record, require, wait};

use crate::audit::{agent_status, call};
use crate::identity::{API, workload};

/// Deletes entries of a pinned hash map, all or those of these keys alone, over and over for a while: BPF_OBJ_GET,
/// BPF_MAP_GET_NEXT_KEY, BPF_MAP_DELETE_ELEM (include/uapi/linux/bpf.h).
const EMPTY: &str = r#"
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
bpf = lambda command, attributes: libc.syscall(321, command, attributes, len(attributes))
path = ctypes.create_string_buffer(os.fsencode(sys.argv[1]))
table = bpf(7, ctypes.addressof(path).to_bytes(8, "little") + bytes(8))
assert table >= 0, sys.argv
until = time.monotonic() + float(sys.argv[2])
word = lambda value: value.to_bytes(8, "little")
only = [ctypes.create_string_buffer(word(int(key)), 8) for key in sys.argv[3:]]
key = ctypes.create_string_buffer(64)
delete = lambda key: bpf(3, word(table) + word(ctypes.addressof(key)) + word(0) + word(0)) == 0
deleted = 0
while True:
    deleted += sum(map(delete, only))
    while not only and bpf(4, word(table) + word(0) + word(ctypes.addressof(key)) + word(0)) == 0:
        assert delete(key)
    if time.monotonic() > until:
        break
    time.sleep(0.05)
assert deleted or not only, "no such key"
"#;

/// A world whose canaries fly every second.
fn start() -> Result<World> {
    let mut world = World::new()?;
    world.upstream(Upstream::new(API))?;
    world.policy("canary.toml", &workload("billing", "", ""))?;
    world.settings("canary_seconds = 1");
    world.start_agent()?;
    Ok(world)
}

fn empty(world: &World, map: &str, seconds: &str) -> Result<()> {
    let pin = world.dir().join("bpf/maps").join(map);
    let pin = pin.to_str().unwrap_or_default();
    let done = world.unmanaged()?.run(["python3", "-c", EMPTY, pin, seconds])?;
    done.ok().map(drop)
}

/// As [`empty`], until it is killed; of these keys alone if there are any.
fn keep_empty(world: &World, map: &str, keys: &[String]) -> Result<Child> {
    let pin = world.dir().join("bpf/maps").join(map);
    let mut command = world.unmanaged()?.command(["python3", "-c", EMPTY]);
    command.arg(pin).arg("300").args(keys);
    Ok(command.stdin(Stdio::null()).spawn()?)
}

fn end(mut emptying: Child) -> Result<()> {
    emptying.kill()?;
    launch::wait_for(&mut emptying, wait::PATIENCE).map(drop)
}

/// The findings that `status` has, when they are none or some.
fn findings(world: &World, some: bool) -> Result<String> {
    wait::until("the canary's word", wait::PATIENCE, || {
        let (code, status) = agent_status(world).ok()?;
        let found = status["canaries"].as_array()?;
        let agrees = found.is_empty() != some && code == Some(i32::from(some));
        agrees.then(|| status["canaries"].to_string())
    })
}

fn doctor(world: &World) -> Result<String> {
    Ok(world.agent()?.command("doctor", &[])?.stdout)
}

fn redirected(world: &World) -> Result<u64> {
    let (_, status) = agent_status(world)?;
    Ok(status["kernel"]["redirected"].as_u64().unwrap_or(0))
}

#[test]
fn canaries_arrive_and_leave_no_record() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    wait::until("three canaries", wait::PATIENCE, || {
        (redirected(&world).ok()? >= 3).then_some(())
    })?;
    findings(&world, false)?;
    assert!(doctor(&world)?.contains("no workload's canary failed"));
    assert!(world.records()?.is_empty(), "{:?}", world.records()?);
    assert_eq!(call(&world, "/call")?, 200);
    assert_record!(world, "path" = "/call");
    let calls = |one: &&Record| one.text("kind") != "kernel_refusal" || one.text("comm") != "curl";
    assert_eq!(world.records()?.iter().filter(calls).count(), 1);
    Ok(())
}

#[test]
fn a_listener_that_the_kernel_forgot_is_found_and_put_back() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let emptying = keep_empty(&world, "LISTENERS", &[])?;
    let found = findings(&world, true)?;
    assert!(found.contains("the kernel side refuses connections"), "{found}");
    let said = world.agent()?.command("doctor", &[])?;
    assert_eq!(said.code(), Some(3), "{said:?}");
    assert!(
        said.stdout.contains("billing: the kernel side refuses"),
        "{said:?}"
    );
    assert_record!(
        world,
        "error.kind" = "canary",
        "workload" = "billing",
        "outcome" = "failed"
    );
    end(emptying)?;
    findings(&world, false)?;
    assert_eq!(call(&world, "/after")?, 200);
    Ok(())
}

#[test]
fn a_workload_that_the_kernel_forgot_is_found_and_put_back() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    empty(&world, "WORKLOADS", "3")?;
    let found = findings(&world, true)?;
    assert!(found.contains("\"workload\":\"billing\""), "{found}");
    assert_record!(world, "error.kind" = "canary", "workload" = "billing");
    findings(&world, false)?;
    assert_eq!(call(&world, "/after")?, 200);
    Ok(())
}

/// Takes the namespace's loopback device down or up.
fn loopback(room: &Room, state: &str) -> Result<()> {
    let enter = format!("--net={}", room.file.display());
    launch::tool(
        Path::new("/usr/bin/nsenter"),
        [enter.as_str(), "ip", "link", "set", "lo", state],
    )?;
    Ok(())
}

#[test]
fn canaries_try_other_namespaces_too_and_what_fails_there_is_a_finding_until_it_is_mended() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = start()?;
    let room = world.room()?;
    let inside = world.workload("billing")?.in_netns(&room.file);
    let mut command = inside.command(["sh", "-c", "read -r end"]);
    let mut stays = command.stdin(Stdio::piped()).spawn()?;
    let served = "a workload is served in a network namespace";
    wait::until("listeners in the namespace", wait::PATIENCE, || {
        world.agent().ok()?.log().contains(served).then_some(())
    })?;
    loopback(&room, "down")?;
    let found = findings(&world, true)?;
    let shown = format!(
        "net:[{}]",
        std::fs::metadata(&room.file).map(|file| inode(&file))?
    );
    let found: serde_json::Value = serde_json::from_str(&found)?;
    assert_eq!(
        found.as_array().map(Vec::len),
        Some(1),
        "the host's own arrives: {found}"
    );
    assert_eq!(found[0]["workload"], "billing");
    let text = world.agent()?.command("status", &[])?.stdout;
    assert!(text.contains(&format!("billing in {shown}: ")), "{text}");
    let said = world.agent()?.command("doctor", &[])?;
    assert_eq!(said.code(), Some(3), "{said:?}");
    assert!(said.stdout.contains(&shown), "{said:?}");
    let record = assert_record!(world, "error.kind" = "canary", "workload" = "billing");
    let message = record.text("error.message");
    assert!(message.contains(&shown), "{message}");
    loopback(&room, "up")?;
    findings(&world, false)?;
    loopback(&room, "down")?;
    findings(&world, true)?;
    // Nobody is left there to be captured.
    drop(stays.stdin.take());
    launch::wait_for(&mut stays, wait::PATIENCE)?;
    findings(&world, false)?;
    Ok(())
}

fn inode(file: &std::fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(file)
}

#[test]
fn who_else_dials_where_canaries_do_is_refused_and_recorded() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let dial = "import socket; s = socket.create_connection((\"127.67.65.78\", 25447), 5); s.sendall(b\"hello\"); print(s.recv(1))";
    let client = world.workload("billing")?;
    client.run(["python3", "-c", dial])?;
    let record = assert_record!(
        world,
        "workload" = "billing",
        "comm" = "python3",
        "decision" = "deny",
        "reason" = "host_not_allowed"
    );
    assert_eq!(record.text("original_destination"), "127.67.65.78:25447");
    assert_eq!(world.records()?.len(), 1, "{:?}", world.records()?);
    // What no canary uses any more is the stub's, as any other address is at this port.
    let stub = [
        "dig",
        "@127.67.65.78",
        "+tcp",
        "+time=5",
        "+tries=1",
        "+short",
        API,
        "A",
    ];
    let told = client.run(stub)?.ok()?;
    assert_eq!(told.lines().next().context("no answer")?, "203.0.113.10");
    Ok(())
}
