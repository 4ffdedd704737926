//! The cases themselves; each runs in a world of its own.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use callgate::ebpf::{Error, Feature, LoadOptions, Programs, Reason};
use socket2::{Domain, Protocol, Socket, Type};

use super::world::{World, probe};
use crate::perimeter::DETACH;

pub(super) const EPERM: &str = "err 1";
pub(super) const ECONNREFUSED: &str = "err 111";
pub(super) const EPROTONOSUPPORT: &str = "err 93";

/// Both ends agree on where the client meant to go, and no connection lacks an origin.
pub(super) fn assert_redirected(world: &World, arguments: &[&str], to: &str) -> Result<()> {
    let line = world.one(arguments)?;
    assert!(
        line.contains(&format!("peer={to} workload=1 dst=")),
        "{arguments:?}: {line}"
    );
    let shown = to.replace("[::ffff:192.0.2.1]", "192.0.2.1");
    assert!(line.contains(&format!("dst={shown} ")), "{arguments:?}: {line}");
    assert!(
        world.take_seen().iter().all(Option::is_some),
        "{arguments:?}: a connection without an origin"
    );
    Ok(())
}

pub(super) fn a_redirected_connection_carries_its_callers_facts(world: &mut World) -> Result<()> {
    world.serve(7, "one")?;
    let line = world.one(&["tcp", "192.0.2.1:443"])?;
    assert!(
        line.starts_with("ok ") && line.contains("peer=192.0.2.1:443 workload=7 dst=192.0.2.1:443"),
        "{line}"
    );
    let seen = world.take_seen();
    let [Some(origin)] = seen.as_slice() else {
        panic!("{seen:?}")
    };
    let pid: u32 = line
        .split_once("pid=")
        .and_then(|(_, rest)| rest.split(' ').next())
        .context("pid")?
        .parse()?;
    assert_eq!(origin.tgid(), Some(pid));
    assert_eq!(origin.cgroup_id(), std::fs::metadata(world.cgroup("one"))?.ino());
    let exe = std::fs::metadata(env!("CARGO_BIN_EXE_probe"))?;
    assert_eq!(origin.exe(), Some((exe.dev(), exe.ino())));
    assert_eq!(
        (origin.comm(), origin.uid(), origin.protocol()),
        (b"probe".as_slice(), 0, 6)
    );
    assert!(origin.start_time().is_some_and(|start| start < origin.stamp()));
    assert!(origin.exec_id().is_some());
    assert!(world.programs.pins_intact());
    Ok(())
}

pub(super) fn every_way_to_connect_is_redirected(world: &mut World) -> Result<()> {
    world.serve(1, "one")?;
    assert_redirected(world, &["tcp", "192.0.2.1:443"], "192.0.2.1:443")?;
    assert_redirected(world, &["tcp", "[2001:db8::1]:443"], "[2001:db8::1]:443")?;
    assert_redirected(world, &["mapped", "192.0.2.1:443"], "[::ffff:192.0.2.1]:443")?;
    assert_redirected(world, &["nonblocking", "192.0.2.1:443"], "192.0.2.1:443")?;
    assert_redirected(world, &["fastopen", "192.0.2.1:443"], "192.0.2.1:443")?;
    for to in ["192.0.2.1:443", "[2001:db8::1]:443"] {
        assert_redirected(world, &["fastopen-connect", to], to)?;
        assert_redirected(world, &["fastopen-sendmsg", to], to)?;
    }
    assert_redirected(world, &["bound", "192.0.2.1:443", "127.0.0.9:0"], "192.0.2.1:443")?;
    assert_redirected(
        world,
        &["bound", "[2001:db8::1]:443", "[::1]:0"],
        "[2001:db8::1]:443",
    )?;
    assert_redirected(world, &["device", "192.0.2.1:443", "lo"], "192.0.2.1:443")?;
    assert_redirected(world, &["device", "192.0.2.1:443", "out0"], "192.0.2.1:443")?;
    assert_redirected(world, &["tcp", "127.0.0.1:8443"], "127.0.0.1:8443")?;
    let line = world.one(&["again", "192.0.2.1:443", "192.0.2.2:8443"])?;
    assert!(
        line.contains("peer=192.0.2.1:443")
            && line.contains("peer=192.0.2.2:8443 workload=1 dst=192.0.2.2:8443"),
        "{line}"
    );
    Ok(())
}

pub(super) fn what_no_rule_names_is_refused_at_once(world: &mut World) -> Result<()> {
    let [listener, _] = world.serve(1, "one")?;
    for to in [
        "192.0.2.1:25",
        "[2001:db8::1]:25",
        "127.0.0.1:25",
        &listener.to_string(),
    ] {
        assert_eq!(world.one(&["tcp", to])?, EPERM, "{to}");
    }
    assert_eq!(world.one(&["mapped", "192.0.2.1:25"])?, EPERM);
    assert_eq!(world.one(&["fastopen", "192.0.2.1:25"])?, EPERM);
    assert_eq!(world.count(Reason::PortNotNamed)?, 6);
    let mut reports = Vec::new();
    world.events.drain(100, |report| reports.push(report));
    assert_eq!(reports.len(), 6);
    let first = reports.first().context("no event")?;
    assert_eq!((first.reason, first.origin.workload()), (Reason::PortNotNamed, 1));
    assert_eq!(first.origin.destination(), "192.0.2.1:25".parse()?);
    assert_eq!(first.origin.comm(), b"probe");
    assert!(world.take_seen().is_empty());
    Ok(())
}

pub(super) fn the_same_source_port_on_two_addresses_is_told_apart(world: &mut World) -> Result<()> {
    world.serve(1, "one")?;
    for round in 0..20 {
        let from = |host: u8| format!("127.0.0.{host}:{}", 40_000 + round);
        let start = |host: u8, to: &str| {
            probe(&world.cgroup("one"), &["bound", to, &from(host)])
                .stdout(Stdio::piped())
                .spawn()
        };
        let (two, three) = (start(2, "192.0.2.2:443")?, start(3, "192.0.2.3:443")?);
        let (two, three) = (two.wait_with_output()?, three.wait_with_output()?);
        let (two, three) = (String::from_utf8(two.stdout)?, String::from_utf8(three.stdout)?);
        assert!(
            two.contains(&format!("dst=192.0.2.2:443 from={}", from(2))),
            "{two}"
        );
        assert!(
            three.contains(&format!("dst=192.0.2.3:443 from={}", from(3))),
            "{three}"
        );
    }
    Ok(())
}

pub(super) fn sockets_made_elsewhere_are_refused(world: &mut World) -> Result<()> {
    world.serve(1, "one")?;
    world.serve(2, "two")?;
    // Made by this process, beside the workloads, and handed in.
    for (domain, to) in [
        (Domain::IPV4, "192.0.2.1:443"),
        (Domain::IPV6, "[2001:db8::1]:443"),
    ] {
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        let output = probe(&world.cgroup("one"), &["handed", to])
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(socket)))
            .output()?;
        assert_eq!(String::from_utf8(output.stdout)?.trim(), EPERM);
    }
    // Made before its maker joined.
    assert_eq!(world.one(&["enrolled-late", "192.0.2.1:443"])?, EPERM);
    assert_eq!(world.count(Reason::UnmarkedSocket)?, 3);
    // Made in one workload, used in another.
    let line = world.one(&["lend", &world.cgroup("two").to_string_lossy(), "192.0.2.1:443"])?;
    assert_eq!(line, EPERM);
    assert_eq!(world.count(Reason::ForeignSocket)?, 1);
    assert!(world.take_seen().is_empty());
    Ok(())
}

pub(super) fn only_tcp_and_udp_sockets_can_be_made(world: &mut World) -> Result<()> {
    const RAW: &str = "3";
    world.serve(1, "one")?;
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")?;
    for (domain, kind, protocol) in [
        ("2", RAW, "1"),
        ("2", RAW, "255"),
        ("10", RAW, "58"),
        ("2", "2", "1"),
        ("10", "2", "58"),
        ("2", "2", "136"),
        ("2", "1", "262"),
    ] {
        let line = world.one(&["socket", domain, kind, protocol])?;
        assert_eq!(line, EPROTONOSUPPORT, "{domain} {kind} {protocol}");
    }
    for (domain, kind, protocol) in [("2", "1", "0"), ("10", "2", "17"), ("1", "1", "0")] {
        assert_eq!(
            world.one(&["socket", domain, kind, protocol])?,
            "ok",
            "{domain} {kind} {protocol}"
        );
    }
    assert!(world.reasons().contains(&Reason::SocketType));
    kinds_that_not_every_kernel_has_are_refused(world)
}

fn kinds_that_not_every_kernel_has_are_refused(world: &World) -> Result<()> {
    const SOCKTNOSUPPORT: &str = "err 94";
    let beside = world.beside()?;
    // SCTP (streams and packets), DCCP, UDP-Lite, MPTCP, L2TP, SMC.
    let kinds = [
        ("1", "132"),
        ("5", "132"),
        ("6", "33"),
        ("2", "136"),
        ("1", "262"),
        ("2", "115"),
        ("1", "256"),
    ];
    for (domain, (kind, protocol)) in ["2", "10"]
        .iter()
        .flat_map(|domain| kinds.map(|kind| (*domain, kind)))
    {
        let wanted = ["socket", domain, kind, protocol];
        let known = world.probe(&beside, &wanted)? == "ok";
        let before = world.count(Reason::SocketType)?;
        let line = world.one(&wanted)?;
        let counted = world.count(Reason::SocketType)? - before;
        assert_eq!(counted, u64::from(known), "{wanted:?}: {line}");
        // The kernel's own word, where it has none.
        let refused = line == EPROTONOSUPPORT || (!known && line == SOCKTNOSUPPORT);
        assert!(refused, "{wanted:?}: {line}");
    }
    Ok(())
}

pub(super) fn udp_is_refused_except_dns_to_the_stub(world: &mut World) -> Result<()> {
    world.serve(1, "one")?;
    for to in [
        "192.0.2.1:443",
        "[2001:db8::1]:443",
        "192.0.2.1:53",
        "127.0.0.1:9",
    ] {
        assert_eq!(world.one(&["udp-connect", to])?, EPERM, "{to}");
        assert_eq!(world.one(&["udp-send", to])?, EPERM, "{to}");
    }
    world.serve_dns(1, "127.0.0.1:0")?;
    world.serve_dns(1, "[::1]:0")?;
    for to in ["192.0.2.1:53", "[2001:db8::1]:53"] {
        assert_eq!(
            world.one(&["udp-connect", to])?,
            format!("ok from={to} peer={to} stub")
        );
        assert_eq!(
            world.one(&["udp-send", to])?,
            format!("ok from={to} peer=none stub")
        );
    }
    assert_eq!(world.one(&["udp-send", "192.0.2.1:443"])?, EPERM);
    // DNS over TCP goes where the workload's connections go.
    assert_redirected(world, &["tcp", "192.0.2.1:53"], "192.0.2.1:53")?;
    assert!(
        world
            .reasons()
            .iter()
            .all(|reason| *reason == Reason::UdpNotAllowed)
    );
    Ok(())
}

pub(super) fn a_silent_agent_means_refused(world: &mut World) -> Result<()> {
    world.serve(1, "one")?;
    assert_redirected(world, &["tcp", "192.0.2.1:443"], "192.0.2.1:443")?;
    world.stop_beating();
    until(|| Ok(world.one(&["tcp", "192.0.2.1:443"])? == ECONNREFUSED))?;
    assert_eq!(world.one(&["tcp", "[2001:db8::1]:443"])?, ECONNREFUSED);
    assert!(world.count(Reason::AgentSilent)? >= 2);
    Ok(())
}

pub(super) fn a_dead_agents_port_taken_by_another_gets_nothing(world: &mut World) -> Result<()> {
    world.programs.arm(&world.plan(1, "one"))?;
    let ours = TcpListener::bind("127.0.0.1:0")?;
    let port = ours.local_addr()?;
    world.programs.mark_listener(1, std::os::fd::AsFd::as_fd(&ours))?;
    drop(ours);
    assert_eq!(world.one(&["tcp", "192.0.2.1:443"])?, ECONNREFUSED);
    let thief = TcpListener::bind(port)?;
    thief.set_nonblocking(true)?;
    for _ in 0..50 {
        assert_eq!(world.one(&["tcp", "192.0.2.1:443"])?, ECONNREFUSED);
    }
    assert!(
        thief
            .accept()
            .is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    );
    assert_eq!(world.count(Reason::ListenerNotOurs)?, 51);
    Ok(())
}

pub(super) fn ten_thousand_connections_are_told_apart(world: &mut World) -> Result<()> {
    const THREADS: &str = "32";
    const EACH: &str = "157";
    world.serve(1, "one")?;
    world.serve(2, "two")?;
    let storm = |number: &str, name: &str| {
        probe(&world.cgroup(name), &["storm", THREADS, EACH, number])
            .stdout(Stdio::piped())
            .spawn()
    };
    let (one, two) = (storm("1", "one")?, storm("2", "two")?);
    for storm in [one, two] {
        let line = String::from_utf8(storm.wait_with_output()?.stdout)?;
        assert_eq!(line.trim(), format!("ok {} {}", 32 * 142, 32 * 15));
    }
    let seen = world.take_seen();
    // A client that resets its connection at once can be gone before the listener's end has seen its last packet of the
    // handshake: then it has taken its name back, and what is accepted is nobody's.
    let nameless = seen.iter().filter(|origin| origin.is_none()).count();
    assert!(nameless <= 2 * 32 * 15, "{nameless} without an origin");
    assert!(seen.len() - nameless >= 2 * 32 * 142);
    assert_eq!(world.count(Reason::FlowLost)?, 0);
    until(|| Ok(world.programs.sweep_flows(Duration::ZERO)? == 0))?;
    Ok(())
}

pub(super) fn nothing_may_be_listened_on_unless_the_plan_says_so(world: &mut World) -> Result<()> {
    let mut plan = world.plan(1, "one");
    plan.listen_ports = vec![8080];
    world.programs.arm(&plan)?;
    let dial = |port: u16| -> Result<String> {
        let mut server = probe(&world.cgroup("one"), &["listen", &format!("127.0.0.1:{port}")])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(server.stdout.take().context("no stdout")?).read_line(&mut line)?;
        let mut said = String::new();
        if let Ok(mut stream) =
            TcpStream::connect_timeout(&([127, 0, 0, 1], port).into(), Duration::from_millis(500))
        {
            stream.read_to_string(&mut said)?;
        }
        server.kill()?;
        server.wait()?;
        Ok(said)
    };
    assert_eq!(dial(8080)?, "served");
    assert_eq!(dial(8081)?, "");
    assert!(world.count(Reason::Ingress)? >= 1);
    Ok(())
}

pub(super) fn an_unmanaged_process_is_untouched(world: &mut World) -> Result<()> {
    let [listener, _] = world.serve(1, "one")?;
    let beside = world.beside()?;
    assert_eq!(world.probe(&beside, &["socket", "2", "3", "1"])?, "ok");
    // ENETUNREACH: the call was not turned, and the namespace leads nowhere.
    assert_eq!(world.probe(&beside, &["tcp", "198.51.100.1:443"])?, "err 101");
    // Straight to the listener: the agent sees that there is no origin.
    let line = world.probe(&beside, &["tcp", &listener.to_string()])?;
    assert!(line.ends_with("unknown"), "{line}");
    assert_eq!(world.take_seen(), [None]);
    Ok(())
}

pub(super) fn a_new_run_takes_over_and_finds_what_was_removed(world: &mut World) -> Result<()> {
    world.serve(1, "one")?;
    let mut next = Programs::load(&world.options)?;
    assert_eq!(
        next.armed().iter().map(|(_, number)| *number).collect::<Vec<_>>(),
        [1]
    );
    assert_redirected(world, &["tcp", "192.0.2.1:443"], "192.0.2.1:443")?;
    next.arm(&world.plan(1, "one"))?;
    assert!(next.pins_intact());
    assert_redirected(world, &["tcp", "[2001:db8::1]:443"], "[2001:db8::1]:443")?;
    let cgroup = std::fs::metadata(world.cgroup("one"))?.ino();
    std::fs::remove_file(
        world
            .options
            .bpffs_dir
            .join(format!("links/cgroup-{cgroup}/cg_egress")),
    )?;
    assert!(!next.pins_intact());
    next.arm(&world.plan(1, "one"))?;
    assert!(next.pins_intact());
    Ok(())
}

pub(super) fn what_was_detached_and_is_back_before_anybody_looked_is_named(world: &mut World) -> Result<()> {
    world.serve(1, "one")?;
    assert!(world.programs.take_remade().is_empty());
    let cgroup = std::fs::metadata(world.cgroup("one"))?.ino();
    let pin = world
        .options
        .bpffs_dir
        .join(format!("links/cgroup-{cgroup}/cg_connect4"));
    let done = Command::new("python3").args(["-c", DETACH]).arg(pin).status()?;
    assert!(done.success());
    assert!(!world.programs.pins_intact());
    world.programs.arm(&world.plan(1, "one"))?;
    assert!(world.programs.pins_intact());
    let remade: Vec<_> = world.programs.take_remade().into_iter().collect();
    assert_eq!(remade, ["cg_connect4"]);
    assert!(world.programs.take_remade().is_empty());
    assert_redirected(world, &["tcp", "192.0.2.1:443"], "192.0.2.1:443")
}

pub(super) fn pins_of_another_version_are_refused(world: &mut World) -> Result<()> {
    let dir = world.options.bpffs_dir.join("maps");
    std::fs::remove_file(dir.join("LIVENESS"))?;
    let error = Programs::load(&world.options)
        .err()
        .context("other pins were taken")?;
    assert!(matches!(error, Error::Version { found: 0, .. }), "{error}");
    Ok(())
}

pub(super) fn a_missing_feature_is_named(world: &mut World) -> Result<()> {
    let options = LoadOptions {
        missing: vec![Feature::SkLookup],
        ..world.options.clone()
    };
    let error = Programs::load(&options).err().context("it loaded")?;
    assert!(error.to_string().contains("bpf_sk_lookup_tcp"), "{error}");
    // Without type information the facts are absent, and never wrong.
    world.programs_without_type_information()?;
    world.serve(1, "one")?;
    assert_redirected(world, &["tcp", "192.0.2.1:443"], "192.0.2.1:443")?;
    world.one(&["tcp", "192.0.2.1:443"])?;
    let seen = world.take_seen();
    let [Some(origin)] = seen.as_slice() else {
        panic!("{seen:?}")
    };
    assert_eq!(
        (origin.exe(), origin.start_time(), origin.exec_id()),
        (None, None, None)
    );
    assert!(origin.tgid().is_some());
    Ok(())
}

pub(super) fn a_socket_connected_before_the_arming_sends_nothing_more(world: &mut World) -> Result<()> {
    let sending = |world: &mut World, arm: bool| -> Result<String> {
        let mut sender = probe(&world.cgroup("one"), &["connected-before", "203.0.113.9:9"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(sender.stdout.take().context("no stdout")?).lines();
        assert_eq!(lines.next().context("it said nothing")??, "ready");
        if arm {
            world.serve(1, "one")?;
        }
        sender.stdin.take().context("no stdin")?.write_all(b"go\n")?;
        let line = lines.next().context("no result")??;
        sender.wait()?;
        Ok(line)
    };
    assert_eq!(sending(world, false)?, "ok 4");
    assert_eq!(sending(world, true)?, EPERM);
    assert_eq!(world.count(Reason::Egress)?, 1);
    Ok(())
}

pub(super) fn after_disarm_nothing_is_captured(world: &mut World) -> Result<()> {
    world.serve(1, "one")?;
    assert_redirected(world, &["tcp", "192.0.2.1:443"], "192.0.2.1:443")?;
    world.programs.disarm(1)?;
    assert_eq!(world.one(&["tcp", "198.51.100.1:443"])?, "err 101");
    assert_eq!(world.one(&["socket", "2", "3", "1"])?, "ok");
    assert!(world.programs.armed().is_empty());
    Ok(())
}

/// Polls until the condition holds; ten seconds are more than any of them needs.
pub(super) fn until(mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition()? {
        anyhow::ensure!(Instant::now() < deadline, "the condition never came true");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
