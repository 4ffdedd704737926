//! A managed process has neither the agent nor the kernel itself send its words to another host: forged sources that
//! answers would follow, and group memberships that the kernel reports to the network.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use harness::audit::matching;
use harness::{World, require, wait};

use crate::identity::{NOBODY, start, workload};

const SNIFFER: &str = include_str!("reflect/sniffer.py");
const LURE: &str = include_str!("reflect/lure.py");
/// Ends the sniffer, after all that was sent before.
const END: &str =
    "import socket; socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendto(b'END', ('2001:db8:113::a', 9))";

/// What the managed process was refused, and which packets arrived outside all the same.
fn lure(world: &World, how: &str) -> Result<(Vec<String>, Vec<String>)> {
    let mut sniffer = world
        .outside()?
        .command(["python3", "-c", SNIFFER])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut seen = BufReader::new(sniffer.stdout.take().context("no output")?).lines();
    ensure!(seen.next().context("it said nothing")?? == "ready");
    let tried = world
        .workload("billing")?
        .user(NOBODY)
        .run(["python3", "-c", LURE, how])?;
    world.unmanaged()?.run(["python3", "-c", END])?.ok()?;
    let seen: Vec<String> = seen.collect::<Result<_, _>>()?;
    sniffer.wait()?;
    ensure!(seen.last().is_some_and(|last| last == "end"), "{seen:?}");
    ensure!(tried.stdout.ends_with("done\n"), "{tried:?}");
    let tried = tried.stdout.lines().map(str::to_owned).collect();
    Ok((tried, seen.into_iter().filter(|line| line != "end").collect()))
}

/// A record of this reason that names who it was.
fn recorded(world: &World, reason: &str) -> Result<()> {
    let expected = [
        ("reason", reason.into()),
        ("workload", "billing".into()),
        ("uid", NOBODY.into()),
    ];
    wait::until("a record of the refusal", wait::PATIENCE, || {
        (!matching(&world.records().ok()?, &expected).is_empty()).then_some(())
    })
}

fn managed() -> Result<World> {
    let exec_by = format!("exec_by = {{ users = [{NOBODY}] }}");
    start(&workload("billing", &exec_by, ""))
}

#[test]
fn options_that_bind_foreign_addresses_or_join_groups_are_refused() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = managed()?;
    let (tried, leaked) = lure(&world, "options")?;
    assert_eq!(leaked, Vec::<String>::new(), "{tried:?}");
    let refused = tried.iter().filter(|line| line.starts_with("refused"));
    assert_eq!(refused.count(), 14, "{tried:?}");
    recorded(&world, "socket_option")
}

#[test]
fn forged_sources_are_refused_where_the_host_lets_anybody_bind_them() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = managed()?;
    let nonlocal = "echo 1 >/proc/sys/net/ipv6/ip_nonlocal_bind";
    world.unmanaged()?.run(["sh", "-c", nonlocal])?.ok()?;
    let (tried, leaked) = lure(&world, "sources")?;
    assert_eq!(leaked, Vec::<String>::new(), "{tried:?}");
    let refused = tried.iter().filter(|line| line.starts_with("refused"));
    assert_eq!(refused.count(), 5, "{tried:?}");
    recorded(&world, "source_address")?;
    // A source of the host's own is nobody else's.
    let own = "import socket, sys\nfor kind, to in ((2, 53), (1, 443)):\n  one = socket.socket(socket.AF_INET6, kind)\n  \
        one.bind(('2001:db8:113::1', 0))\n  one.connect(('2001:db8:113::a', to))";
    world.workload("billing")?.run(["python3", "-c", own])?.ok()?;
    Ok(())
}
