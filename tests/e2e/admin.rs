//! The admin socket, to which anybody may connect: nobody's connections take the agent's means or others' turn, and
//! who asks is who connected.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use harness::{Client, Upstream, World, require, wait};

use crate::identity::{API, NOBODY, status, workload};

/// More than any limit.
const CROWD: &str = "300";

fn start() -> Result<World> {
    let mut world = World::new()?;
    world.upstream(Upstream::new(API))?;
    let exec_by = format!("exec_by = {{ users = [{NOBODY}] }}");
    let policy = workload("billing", "", "exe = \"/usr/bin/curl\"")
        + &workload("hog", &exec_by, "paths = [\"/none\"]");
    world.policy("a.toml", &policy)?;
    world.start_agent()?;
    Ok(world)
}

/// Connects many times and waits.
fn crowd(world: &World, client: &Client) -> Result<Child> {
    let socket = world.dir().join("run/admin.sock");
    let socket = socket.to_str().context("a path")?;
    let mut command = client.command([
        "/usr/bin/python3",
        "-c",
        include_str!("admin/crowd.py"),
        socket,
        CROWD,
    ]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("no stdout")?).read_line(&mut line)?;
    ensure!(line == "connected\n", "the crowd said {line:?}");
    Ok(child)
}

fn disperse(mut crowd: Child) -> Result<()> {
    crowd.stdin.take().context("no stdin")?.write_all(b"\n")?;
    ensure!(crowd.wait()?.success());
    Ok(())
}

#[test]
fn connections_that_say_nothing_take_neither_descriptors_nor_anyones_turn() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let descriptors = Path::new("/proc")
        .join(world.agent()?.pid().to_string())
        .join("fd");
    let count = || -> Result<usize> { Ok(fs::read_dir(&descriptors)?.count()) };
    let before = count()?;
    let managed = crowd(&world, &world.workload("hog")?.user(NOBODY))?;
    // It is answered after all before it were looked at.
    world.agent()?.command("status", &[])?.ok()?;
    assert!(
        count()? < before + 2 * 16 + 30,
        "{before} descriptors became {}",
        count()?
    );
    let other = crowd(&world, &world.unmanaged()?.user(NOBODY))?;
    world.agent()?.command("status", &[])?.ok()?;
    assert!(
        count()? < before + 2 * (16 + 64) + 30,
        "{before} descriptors became {}",
        count()?
    );
    let url = format!("https://{API}/v1");
    let curl = [
        "/usr/bin/curl",
        "-sS",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}\n",
        &url,
    ];
    let reply = world.workload("billing")?.run(curl)?;
    assert_eq!(status(&reply), 200, "{reply:?}");
    disperse(managed)?;
    disperse(other)?;
    // The crowd's user gets in again too.
    wait::until("room for the user", wait::PATIENCE, || {
        let reply = world
            .workload("hog")
            .ok()?
            .user(NOBODY)
            .run(["echo", "in"])
            .ok()?;
        (reply.stdout == "in\n").then_some(())
    })?;
    Ok(())
}

#[test]
fn a_process_that_got_the_number_of_a_peer_is_not_the_peer() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent, NextPid);
    let world = start()?;
    let socket = world.dir().join("run/admin.sock");
    let socket = socket.to_str().context("a path")?;
    let script = [
        "/usr/bin/python3",
        "-c",
        include_str!("admin/recycled.py"),
        socket,
    ];
    let said = world.unmanaged()?.run(script)?.ok()?;
    assert!(said.starts_with("stayed "), "{said}");
    Ok(())
}
