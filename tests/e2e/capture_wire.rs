//! What is seen on the wire outside: nothing of a managed process but what a rule lets out.

/// The same on a booted Debian.
mod booted;

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Child;

use anyhow::{Context as _, Result};
use harness::audit::matching;
use harness::{Record, Upstream, World, assert_record, require, wait};

use crate::identity::{API, workload};

const V4: &str = "203.0.113.10";
const V6: &str = "2001:db8:113::a";
const NEIGHBOUR_V4: &str = "203.0.113.11";
const NEIGHBOUR_V6: &str = "2001:db8:113::b";
/// Tries each way out.
const LEAVE: &str = include_str!("capture_wire/leave.py");
/// Logs what comes over the wire.
const SNIFF: &str = include_str!("capture_wire/sniff.py");

/// A world with two upstreams (hence the four addresses) and an agent under this policy.
fn start(policy: &str) -> Result<World> {
    let mut world = World::new()?;
    world.upstream(Upstream::new(API))?;
    world.upstream(Upstream::new("neighbour.example.test"))?;
    world.policy("wire.toml", policy)?;
    world.start_agent()?;
    Ok(world)
}

fn python<'a>(script: &'a str, args: &[&'a str]) -> Vec<&'a str> {
    [&["python3", "-c", script], args].concat()
}

/// A script outside that writes to a log, and has begun.
struct Outside {
    log: PathBuf,
    _child: Child,
}

impl Outside {
    fn start(world: &World, name: &str, script: &str, args: &[&str]) -> Result<Self> {
        let log = world.dir().join(name);
        let args = [&[text(&log)?], args].concat();
        let child = world.outside()?.command(python(script, &args)).spawn()?;
        let outside = Self { log, _child: child };
        outside.until("it listens", |said| said.starts_with("ready\n"))?;
        Ok(outside)
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn until(&self, what: &str, holds: impl Fn(&str) -> bool) -> Result<()> {
        wait::until(what, wait::PATIENCE, || holds(&self.said()).then_some(()))
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}

/// Marks on the wire, one for each neighbour: what was sent there before has arrived when its mark has. (One for
/// all would say too little: what goes to a neighbour whose link address is not known yet waits for it alone.)
fn mark(world: &World, wire: &Outside, neighbours: &[&str]) -> Result<()> {
    for neighbour in neighbours {
        let mark = hex(&format!("MARK {neighbour}"));
        let before = wire.said().matches(&mark).count();
        let script = python(include_str!("capture_wire/mark.py"), &[neighbour]);
        world.unmanaged()?.run(script)?.ok()?;
        wire.until("the mark on the wire", |said| {
            said.matches(&mark).count() > before
        })
        .with_context(|| format!("for {neighbour}: {}", wire.said()))?;
    }
    Ok(())
}

/// As the log shows it.
fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

/// Each way was tried, and those that no listener takes were refused.
fn was_held(said: &str) {
    let tried: Vec<_> = said.lines().filter(|line| line.starts_with("AF_INET")).collect();
    assert_eq!(tried.len(), 51, "{said}");
    for line in tried {
        let taken = !line.contains("other port") && !line.contains("raw");
        assert!(taken || !line.ends_with("done"), "{said}");
    }
}

/// Since the wire is listened to there were marks on it and nothing else.
fn is_silent(world: &World, wire: &Outside, neighbours: &[&str], said: &str) -> Result<()> {
    mark(world, wire, neighbours)?;
    let (seen, any_mark) = (wire.said(), hex("MARK "));
    let others = seen.lines().skip(1).filter(|line| !line.contains(&any_mark));
    assert_eq!(others.count(), 0, "{said}\n{seen}");
    Ok(())
}

/// What was tried did leave: without a workload it does.
fn has_left(world: &World, wire: &Outside, neighbours: &[&str]) -> Result<()> {
    mark(world, wire, neighbours)?;
    let seen = wire.said();
    assert!(seen.lines().count() > 12, "{seen}");
    for text in [
        "by raw",
        "routed",
        "by device",
        "chosen",
        "preferred",
        "sticky",
        "link",
        "mapped",
        "many",
        "xxxx",
        "moreand out",
        "dissolved",
    ] {
        assert!(seen.contains(&hex(text)), "{text}: {seen}");
    }
    Ok(())
}

/// What is bound to a device by one who may not take it back is on record.
fn is_on_record(records: impl Fn() -> Result<Vec<Record>>) -> Result<()> {
    wait::until("a record of the refusal", wait::PATIENCE, || {
        let expected = [("reason", "device_bound".into()), ("workload", "billing".into())];
        (!matching(&records().ok()?, &expected).is_empty()).then_some(())
    })
}

#[test]
fn nothing_that_a_managed_process_tries_is_seen_on_the_wire() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start(&workload("billing", "", ""))?;
    let wire = Outside::start(&world, "wire", SNIFF, &[])?;
    let link = link_local(&world)?;
    let neighbours = [V4, V6, &link];
    let leave = python(LEAVE, &neighbours);
    let said = world.workload("billing")?.run(leave.clone())?.ok()?;
    was_held(&said);
    is_silent(&world, &wire, &neighbours, &said)?;
    world.unmanaged()?.run(leave)?.ok()?;
    has_left(&world, &wire, &neighbours)?;
    is_on_record(|| world.records())
}

/// The upstreams' address that needs a device beside it, once both ends have theirs: until a host has seen that
/// no other has it (RFC 4862, section 5.4, "tentative"), it neither sends from it nor answers for it.
fn link_local(world: &World) -> Result<String> {
    let settled = |shown: &str| {
        let address = shown.split(' ').find_map(|word| word.strip_suffix("/64"))?;
        (!shown.contains("tentative")).then(|| address.to_owned())
    };
    wait::until("addresses of the link's own", wait::PATIENCE, || {
        let of = |device| format!("ip -6 -o addr show dev {device} scope link");
        let here = world
            .unmanaged()
            .ok()?
            .run(of("in0").split(' '))
            .ok()?
            .ok()
            .ok()?;
        let outside = world.outside().ok()?.run(of("out0").split(' ')).ok()?.ok().ok()?;
        settled(&here)?;
        settled(&outside)
    })
}

#[test]
fn a_direct_rule_lets_its_range_out_untouched_and_not_the_neighbour() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let direct = |cidr: &str| format!("[[workload.direct]]\ncidr = {cidr:?}\nport = 7000\n");
    let policy = workload("billing", "", "") + &direct(&format!("{V4}/32")) + &direct(&format!("{V6}/128"));
    let world = start(&policy)?;
    let all = [V4, V6, NEIGHBOUR_V4, NEIGHBOUR_V6];
    let echo = Outside::start(&world, "echo", include_str!("capture_wire/echo.py"), &all)?;
    let wire = Outside::start(&world, "wire", SNIFF, &[])?;
    let connect = |to| {
        let script = python(include_str!("capture_wire/direct.py"), &[to]);
        world.workload("billing")?.run(script)?.ok()
    };
    for (to, shown) in [(V4, format!("{V4}:7000")), (V6, format!("[{V6}]:7000"))] {
        let said = connect(to)?;
        assert!(said.contains(&format!("peer {to} same True")), "{to}: {said}");
        assert_record!(
            world,
            "kind" = "direct",
            "original_destination" = shown.as_str(),
            "workload" = "billing"
        );
    }
    for (to, shown) in [
        (NEIGHBOUR_V4, format!("{NEIGHBOUR_V4}:7000")),
        (NEIGHBOUR_V6, format!("[{NEIGHBOUR_V6}]:7000")),
    ] {
        assert_eq!(connect(to)?, "errno 1\n", "{to}");
        assert_record!(
            world,
            "reason" = "port_not_named",
            "original_destination" = shown.as_str(),
            "decision" = "deny"
        );
    }
    mark(&world, &wire, &[V4, V6, NEIGHBOUR_V4, NEIGHBOUR_V6])?;
    let (seen, accepted) = (wire.said(), echo.said());
    let to = |address: &str| {
        seen.lines()
            .filter(|line| line.starts_with(&format!("{address} ")))
            .count()
    };
    assert!(to(V4) > 3 && to(V6) > 3, "{seen}");
    // Their marks.
    assert_eq!((to(NEIGHBOUR_V4), to(NEIGHBOUR_V6)), (1, 1), "{seen}");
    assert_eq!(accepted.matches("accepted").count(), 2, "{accepted}");
    Ok(())
}

#[test]
fn a_client_that_prefers_quic_falls_back_at_once() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start(&workload("billing", "", ""))?;
    let quic = world.outside_udp((V4.parse::<Ipv4Addr>()?, 443).into())?;
    let reply = world
        .workload("billing")?
        .run(python(include_str!("capture_wire/quic.py"), &[API]))?;
    let said = reply.clone().ok().with_context(|| format!("{reply:?}"))?;
    // Refused, not swallowed: the client's own limit of time has not run out.
    assert!(
        said.starts_with("quic 1\n") && said.ends_with("tcp 200\n"),
        "{said}"
    );
    let refused = format!("{V4}:443");
    // Several: the C library, too, connects UDP sockets, to see which address it would come from.
    wait::until("a record of the refusal", wait::PATIENCE, || {
        let records = world.records().ok()?;
        let expected = [
            ("reason", "udp_not_allowed".into()),
            ("original_destination", refused.as_str().into()),
            ("protocol", "udp".into()),
        ];
        (!matching(&records, &expected).is_empty()).then_some(())
    })?;
    assert_record!(world, "path" = "/fallback", "status" = 200);
    let arrived = quic.recv(&mut [0; 64]);
    assert!(arrived.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));
    Ok(())
}
