//! What passes by a direct rule, and what is told of it and of refusals, in floods too.

use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context as _, Result};
use callgate::ebpf::{Direct, LoadOptions, Programs, Reason, Transport};

use super::cases::{ECONNREFUSED, EPERM, EPROTONOSUPPORT, until};
use super::world::World;

pub(super) fn a_direct_rule_passes_and_is_reported(world: &mut World) -> Result<()> {
    let server = TcpListener::bind("127.0.0.77:0")?;
    let address = server.local_addr()?;
    let mut plan = world.plan(1, "one");
    plan.direct = vec![Direct {
        net: "127.0.0.76/30".parse()?,
        port: Some(address.port()),
        transport: Transport::Tcp,
    }];
    world.programs.arm(&plan)?;
    let serving = std::thread::spawn(move || {
        server
            .accept()
            .map(|(mut stream, _)| stream.write_all(b"straight"))
    });
    let line = world.one(&["tcp", &address.to_string()])?;
    assert!(line.ends_with(&format!("peer={address} straight")), "{line}");
    serving.join().ok().context("the server failed")???;
    assert_eq!(world.reasons(), [Reason::Direct]);
    // Next to the range, and after the rule is gone.
    assert_eq!(
        world.one(&["tcp", &format!("127.0.0.80:{}", address.port())])?,
        ECONNREFUSED
    );
    plan.direct.clear();
    world.programs.arm(&plan)?;
    assert_eq!(world.one(&["tcp", &address.to_string()])?, ECONNREFUSED);
    Ok(())
}

pub(super) fn a_flood_of_refusals_is_cut_and_counted(world: &mut World) -> Result<()> {
    world.serve(1, "one")?;
    assert_eq!(world.one(&["flood", "192.0.2.1:25", "500"])?, "ok 500");
    let sent = world.reasons().len() as u64;
    assert!(sent < 500, "{sent} events");
    assert_eq!(world.count(Reason::PortNotNamed)?, 500);
    assert_eq!(world.count(Reason::EventSuppressed)?, 500 - sent);
    let mut sums = Vec::new();
    world.programs.take_suppressed(&mut sums)?;
    let [sum] = sums.as_slice() else {
        panic!("{sums:?}")
    };
    assert_eq!((sum.reason, sum.origin.workload()), (Reason::PortNotNamed, 1));
    assert_eq!(u64::from(sum.suppressed) + 1, 500 - sent);
    world.programs.take_suppressed(&mut sums)?;
    assert_eq!(sums.len(), 1, "taken twice");
    Ok(())
}

pub(super) fn direct_connections_are_told_of_behind_a_flood(world: &mut World) -> Result<()> {
    const MANY: u64 = 200;
    let servers = [
        TcpListener::bind("127.0.0.77:0")?,
        TcpListener::bind("127.0.0.78:0")?,
    ];
    let mut plan = world.plan(1, "one");
    let mut addresses = Vec::new();
    for server in &servers {
        let address = server.local_addr()?;
        plan.direct.push(Direct {
            net: address.ip().into(),
            port: Some(address.port()),
            transport: Transport::Tcp,
        });
        addresses.push(address);
    }
    world.programs.arm(&plan)?;
    for server in servers {
        std::thread::spawn(move || while server.accept().is_ok() {});
    }
    assert_eq!(world.one(&["flood", "192.0.2.1:25", "500"])?, "ok 500");
    assert!(!world.reasons().contains(&Reason::Direct));
    for address in &addresses {
        let line = world.one(&["flood", &address.to_string(), &MANY.to_string()])?;
        assert_eq!(line, "ok 0");
    }
    let mut reports = Vec::new();
    world.events.drain(10_000, |report| reports.push(report));
    assert!(!reports.is_empty(), "the flood took the budget");
    world.programs.take_suppressed(&mut reports)?;
    for address in &addresses {
        let direct = reports.iter().filter(|report| report.reason == Reason::Direct);
        let of_this = direct.filter(|report| report.origin.destination() == *address);
        let told: u64 = of_this.map(|report| u64::from(report.suppressed) + 1).sum();
        assert_eq!(told, MANY, "{address}");
    }
    Ok(())
}

pub(super) fn what_is_withdrawn_stays_held_with_nothing_allowed(world: &mut World) -> Result<()> {
    let server = TcpListener::bind("127.0.0.77:0")?;
    let address = server.local_addr()?;
    world.serve(1, "one")?;
    let mut plan = world.plan(1, "one");
    plan.direct = vec![Direct {
        net: "127.0.0.77/32".parse()?,
        port: Some(address.port()),
        transport: Transport::Tcp,
    }];
    world.programs.arm(&plan)?;
    let mut next = Programs::load(&world.options)?;
    next.withdraw(1)?;
    assert_eq!(world.one(&["tcp", &address.to_string()])?, ECONNREFUSED);
    assert_eq!(world.one(&["tcp", "192.0.2.1:443"])?, ECONNREFUSED);
    assert_eq!(world.one(&["socket", "2", "3", "1"])?, EPROTONOSUPPORT);
    let [(id, 1)] = next.armed() else {
        panic!("{:?}", next.armed())
    };
    assert!(next.exists(*id));
    Ok(())
}

pub(super) fn what_lies_on_another_level_than_before_stays_held(world: &mut World) -> Result<()> {
    world.serve(1, "one")?;
    std::fs::create_dir_all(world.base.join("parent/deep/deeper"))?;
    let options = LoadOptions {
        parent: world.options.parent.join("deep/deeper"),
        ..world.options.clone()
    };
    let next = Programs::load(&options)?;
    assert_eq!(world.one(&["socket", "2", "3", "1"])?, EPROTONOSUPPORT);
    assert_eq!(world.one(&["tcp", "192.0.2.1:25"])?, EPERM);
    assert_eq!(world.count(Reason::UnmarkedSocket)?, 0);
    let id = std::fs::metadata(world.cgroup("one"))?.ino();
    assert!(next.exists(id));
    let removed = || Ok(std::fs::remove_dir(world.cgroup("one")).is_ok());
    until(removed)?;
    assert!(!next.exists(id));
    Ok(())
}
