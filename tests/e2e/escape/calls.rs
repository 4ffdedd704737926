//! System calls that would type into the terminal, take other processes' means, pass for another program, or let the
//! kernel act outside.

use std::fs;

use anyhow::{Context, Result};
use harness::{Client, World, agent, require};

use super::{poor, start};
use crate::identity::NOBODY;

const CALLS: &str = include_str!("calls.py");

/// What each of the calls says; see `calls.py`.
fn say(client: &Client, calls: &str) -> Result<Vec<String>> {
    let reply = client.run(["/usr/bin/python3", "-c", CALLS, calls])?.ok()?;
    Ok(reply.lines().map(str::to_owned).collect())
}

fn both(world: &World) -> Result<[Client; 2]> {
    let client = world.workload("poor")?;
    Ok([client.clone(), client.user(NOBODY)])
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_command_can_not_type_into_its_terminal() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let (binary, config) = (agent::binary()?, world.config());
    let paths = [binary.to_str(), config.to_str()].map(Option::unwrap_or_default);
    // TIOCSTI; the same with bits that the kernel cuts off; by the x32 number; TIOCLINUX.
    let calls = "16 0 0x5412 x / 16 0 0x100005412 x / 0x40000202 0 0x5412 x / 16 0 0x541c x / 16 0 0x5412 \n";
    for client in [world.unmanaged()?, world.unmanaged()?.user(NOBODY)] {
        let exec = [paths[0], "exec", "--config", paths[1], "--workload", "poor", "--"];
        let head = ["/usr/bin/python3", "-c", include_str!("terminal.py")];
        let args: Vec<&str> = head
            .into_iter()
            .chain(exec)
            .chain(["/usr/bin/python3", "-c", CALLS, calls])
            .collect();
        let reply = client.run(args)?.ok()?;
        let lines: Vec<&str> = reply
            .lines()
            .filter(|line| !line.starts_with("callgate"))
            .collect();
        let expected = ["EPERM", "EPERM", "ENOSYS", "EPERM", "EPERM", "typed nothing"];
        assert_eq!(lines, expected, "{reply}");
    }
    Ok(())
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_command_can_not_let_the_kernel_ask_for_keys() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    for client in both(&world)? {
        let said = say(
            &client,
            "248 user a b 1 -3 / 249 dns_resolver a.example b -3 / 250 0 -3 0 / 0x400000fa 0 -3 0",
        )?;
        assert_eq!(said, ["ENOSYS"; 4]);
    }
    Ok(())
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_command_has_no_io_uring() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    // io_uring_setup, io_uring_enter, io_uring_register.
    for client in both(&world)? {
        let said = say(
            &client,
            "425 1 x / 426 0 0 0 0 0 0 / 427 0 0 0 0 / 0x400001a9 1 x",
        )?;
        assert_eq!(said, ["ENOSYS"; 4]);
    }
    Ok(())
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_command_can_not_say_that_it_runs_another_program() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    // prctl(PR_SET_MM, PR_SET_MM_EXE_FILE or PR_SET_MM_MAP, ...)
    let calls = "157 35 13 0 0 0 / 157 35 14 0 0 0 / 157 0x100000023 13 0 0 0";
    for client in both(&world)? {
        assert_eq!(say(&client, calls)?, ["EPERM"; 3]);
        // In a user namespace of its own it has all capabilities there.
        let inside = ["unshare", "-U", "/usr/bin/python3", "-c", CALLS, calls];
        let reply = client.run(inside)?.ok()?;
        assert_eq!(reply, "EPERM\nEPERM\nEPERM\n");
    }
    Ok(())
}

#[test]
fn a_command_can_not_take_away_what_the_agent_runs_with() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let pid = world.agent()?.pid();
    let facts = || -> Result<[String; 3]> {
        let read =
            |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).context("the agent is gone");
        let status = read("status")?;
        let processors = status
            .lines()
            .find(|line| line.starts_with("Cpus_allowed:"))
            .unwrap_or_default();
        Ok([read("limits")?, read("oom_score_adj")?, processors.to_owned()])
    };
    let before = facts()?;
    for attempt in [
        format!("prlimit --pid {pid} --nofile=20:20"),
        format!("echo 1000 >/proc/{pid}/oom_score_adj"),
        format!("chrt -i -p 0 {pid}"),
        format!("chrt -b -p 0 {pid}"),
        format!("taskset -p 1 {pid}"),
        format!("renice -n 19 -p {pid}"),
        format!("ionice -c 3 -p {pid}"),
    ] {
        for reply in poor(&world, &format!("{attempt} 2>&1"))? {
            assert!(reply.code() != Some(0), "{attempt}: {reply:?}");
            assert!(!reply.stdout.contains("not found"), "{attempt}: {reply:?}");
        }
    }
    assert_eq!(facts()?, before);
    let seen = world.workload("poor")?.run(["ls", &format!("/proc/{pid}")])?;
    assert!(seen.code() != Some(0), "{seen:?}");
    // setpriority and ioprio_set of all processes of the user or of the group, to what they have anyway.
    #[cfg(target_arch = "x86_64")]
    {
        let said = say(
            &world.workload("poor")?,
            "141 2 0 0 / 141 1 0 0 / 251 3 0 0 / 251 2 0 0",
        )?;
        assert_eq!(said, ["EPERM"; 4]);
    }
    Ok(())
}

#[test]
fn a_command_can_set_its_own_limits_and_priority() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    for own in [
        "ulimit -n 100 && prlimit --nofile=50:50 true",
        "nice -n 5 true && chrt -i 0 true && taskset -c 0 true && ionice -c 3 true",
        "echo 900 >/proc/self/oom_score_adj && test \"$(cat /proc/$$/comm)\" = sh",
        // A terminal's other requests.
        "/usr/bin/python3 -c 'import os, pty, termios; termios.tcgetattr(pty.openpty()[0])'",
        "/usr/bin/python3 -c 'import threading; t = threading.Thread(target=print); t.start(); t.join()'",
    ] {
        for reply in poor(&world, own)? {
            assert_eq!(reply.code(), Some(0), "{own}: {reply:?}");
        }
    }
    Ok(())
}
