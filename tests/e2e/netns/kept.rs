//! The whole agent restarts: what it listens on in another namespace outlives it, and no longer than it is needed.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, anyhow};
use harness::launch::{self, Place};
use harness::sandbox::Room;
use harness::{World, require, wait};
use nix::sched::{CloneFlags, setns};

use super::{CALL_LIMIT, Stays, curl, served, with_upstream};
use crate::audit::worker;
use crate::identity::{API, CODE, status};
use crate::load::{Load, Said, check_records, prepared, settled};

const PARTS: [&str; 4] = ["dns4", "dns6", "tcp4", "tcp6"];

/// What is kept of the workload's sockets in other namespaces, sorted.
fn names(world: &World) -> Result<Vec<String>> {
    let all = world.keeper()?.names();
    Ok(all.into_iter().filter(|name| name.contains('@')).collect())
}

/// The names and the port of the listener for IPv4, once all four sockets are kept.
fn kept(world: &World) -> Result<(Vec<String>, u16)> {
    let names = wait::until("the sockets kept", wait::PATIENCE, || {
        names(world).ok().filter(|names| names.len() == PARTS.len())
    })?;
    for (name, part) in names.iter().zip(PARTS) {
        assert!(name.starts_with(&format!("callgate-billing-{part}@")), "{name}");
    }
    let listener = names.iter().find(|name| name.contains("tcp4"));
    let port = world.keeper()?.port(listener.context("no listener")?)?;
    Ok((names, port))
}

fn lost(said: &[Said]) -> Vec<&Said> {
    said.iter().filter(|one| one.status != 200).collect()
}

/// As `world`'s clients, in the namespace and over its own way out.
fn load(world: &World, room: &Room) -> Result<Load> {
    let client = world.workload("billing")?.in_netns(&room.file);
    Load::start(world, |args| client.command(args), 4, 4)
}

#[test]
fn a_restart_under_load_from_another_namespace_loses_no_call() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = prepared()?;
    world.keep_sockets()?;
    world.start_agent()?;
    let room = world.room()?;
    let _stays = Stays::start(&world, &room)?;
    let before = kept(&world)?;
    let load = load(&world, &room)?;
    let old = worker(&world)?;
    for _ in 0..2 {
        world.stop_agent()?;
        world.start_agent()?;
        load.goes_on()?;
        assert_eq!(kept(&world)?, before);
    }
    assert_ne!(worker(&world)?, old);
    let said = load.end()?;
    assert!(
        lost(&said).is_empty(),
        "{} of {}: {:?}",
        lost(&said).len(),
        said.len(),
        lost(&said)
    );
    let (records, arrived) = settled(&world)?;
    check_records(&records, &arrived);
    let log = world.agent()?.log();
    assert_eq!(log.matches("netns_inode").count(), 0, "{log}");
    Ok(())
}

#[test]
fn an_agent_that_is_killed_keeps_its_ports_in_another_namespace_and_opens_nothing() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = start_kept()?;
    let room = world.room()?;
    let _stays = Stays::start(&world, &room)?;
    let url = format!("https://{API}/who");
    served(&world, &room, &[&url])?;
    let before = kept(&world)?;
    for _ in 0..3 {
        world.kill_agent()?;
        assert!(!can_bind(&room, before.1)?, "the port is free");
        world.start_agent()?;
        assert_eq!(status(&curl(&world, &room.file, &[&url])?), 200);
        assert_eq!(kept(&world)?, before);
    }
    Ok(())
}

fn start_kept() -> Result<World> {
    let mut world = with_upstream()?;
    world.keep_sockets()?;
    world.start_agent()?;
    Ok(world)
}

/// Whether a process in the namespace could have this port.
fn can_bind(room: &Room, port: u16) -> Result<bool> {
    let file = fs::File::open(&room.file)?;
    let tried = thread::spawn(move || -> Result<bool> {
        setns(&file, CloneFlags::CLONE_NEWNET)?;
        Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok())
    });
    tried.join().map_err(|_panic| anyhow!("the thread panicked"))?
}

#[test]
fn a_namespace_that_ended_while_no_agent_ran_is_let_go_of_by_the_next() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = start_kept()?;
    let room = world.room()?;
    let stays = Stays::start(&world, &room)?;
    kept(&world)?;
    world.drop_room(&room)?;
    world.stop_agent()?;
    stays.end()?;
    assert!(world.has_room(&room)?, "what is kept holds it");
    world.start_agent()?;
    wait::until("the end of the namespace", wait::PATIENCE, || {
        (!world.has_room(&room).ok()? && names(&world).ok()?.is_empty()).then_some(())
    })
}

#[test]
fn what_is_kept_under_a_namespaces_name_and_is_not_that_is_closed() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = start_kept()?;
    let room = world.room()?;
    let _stays = Stays::start(&world, &room)?;
    let url = format!("https://{API}/who");
    served(&world, &room, &[&url])?;
    let (before, port) = kept(&world)?;
    world.stop_agent()?;
    // One of the four is taken for the host's, and one namespace there never was.
    let foreign = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let listener = before.iter().find(|name| name.contains("tcp4"));
    let listener = listener.context("no listener")?;
    let unknown = foreign.try_clone()?;
    world.keeper()?.replace(listener, foreign.into());
    world
        .keeper()?
        .add("callgate-billing-tcp4@999999", unknown.into());
    world.start_agent()?;
    served(&world, &room, &[&url])?;
    let (after, fresh) = kept(&world)?;
    assert_eq!(after, before);
    assert_ne!(fresh, port);
    assert!(can_bind(&room, port)?, "the old listener is still there");
    Ok(())
}

#[test]
fn a_connection_from_another_namespace_while_no_agent_runs_is_served_by_the_next() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = start_kept()?;
    let room = world.room()?;
    let stays = Stays::start(&world, &room)?;
    let url = format!("https://{API}/who");
    served(&world, &room, &["-4", &url])?;
    world.stop_agent()?;
    // A command can't be enrolled without an agent.
    let slice = world.cgroup().join("workloads/callgate-billing.slice/late");
    fs::create_dir(&slice)?;
    let bundle = world.dir().join("run/trust/ca-bundle.pem");
    let bundle = bundle.to_str().context("no text")?;
    let place = Place::in_cgroup(&slice).in_netns(&room.file);
    let limit = wait::scaled(3 * CALL_LIMIT).as_secs().to_string();
    let mut client = place
        .command([
            "curl", "-sS", "-f", "-4", "-m", &limit, "-w", CODE, "--cacert", bundle, &url,
        ])
        .spawn()?;
    wait::until("a connection that waits", wait::PATIENCE, || {
        let waits = waiting(Path::new("/proc").join(client.id().to_string()).as_path()).ok()?;
        waits.then_some(())
    })?;
    world.start_agent()?;
    assert!(launch::wait_for(&mut client, wait::PATIENCE)?.success());
    stays.end()?;
    Ok(())
}

/// Whether somebody waits to be accepted in the process's namespace: a listener's receive queue.
fn waiting(process: &Path) -> Result<bool> {
    let listed = fs::read_to_string(process.join("net/tcp"))?;
    let waits = |line: &str| line.contains(" 0A 00000000:") && !line.contains(" 0A 00000000:00000000 ");
    Ok(listed.lines().any(waits))
}
