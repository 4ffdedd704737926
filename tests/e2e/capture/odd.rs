//! Ways to connect that few programs use, and packets of odd forms.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use callgate::ebpf::Reason;
use harness::Feature;
use harness::kernel::skip;

use super::cases::{EPERM, assert_redirected, until};
use super::world::{World, probe};

pub(super) fn a_socket_that_becomes_an_ipv4_one_stays_redirected(world: &mut World) -> Result<()> {
    world.serve(1, "one")?;
    let line = world.one(&["addrform", "192.0.2.1:443"])?;
    let expected = "ok before=[::ffff:192.0.2.1]:443 after=192.0.2.1:443 pid=";
    assert!(line.starts_with(expected), "{line}");
    let both: Vec<&str> = line.split('|').collect();
    assert_eq!(both.len(), 2, "{line}");
    for half in both {
        assert!(
            half.contains("peer=192.0.2.1:443 workload=1 dst=192.0.2.1:443"),
            "{line}"
        );
    }
    assert!(world.take_seen().iter().all(Option::is_some));
    Ok(())
}

pub(super) fn packets_with_a_route_of_their_own_do_not_leave(world: &mut World) -> Result<()> {
    world.serve(1, "one")?;
    world.serve_dns(1, "127.0.0.1:0")?;
    world.serve_dns(1, "[::1]:0")?;
    for (to, hop) in [
        ("192.0.2.1", "203.0.113.9:0"),
        ("[2001:db8::1]", "[2001:db8:113::9]:0"),
    ] {
        let before = world.count(Reason::Egress)?;
        let line = world.one(&["routed", &format!("{to}:443"), hop])?;
        assert!(line.starts_with("err"), "{to}: {line}");
        let between = world.count(Reason::Egress)?;
        assert!(between > before, "{to}: nothing was dropped");
        world.one(&["routed-udp", &format!("{to}:53"), hop])?;
        assert!(
            world.count(Reason::Egress)? > between,
            "{to}: the datagram was not dropped"
        );
    }
    assert!(world.take_seen().is_empty());
    Ok(())
}

pub(super) fn segments_of_more_than_64_kib_pass_the_perimeter(world: &mut World) -> Result<()> {
    // Over IPv6 the kernel says the size of such a segment in a header of its own ("jumbo payload").
    let large = "link set lo gso_max_size 196608 gro_max_size 196608";
    ensure!(
        Command::new("ip").args(large.split(' ')).status()?.success(),
        "ip {large} failed"
    );
    world.serve(1, "one")?;
    for to in ["[2001:db8::1]:443", "192.0.2.1:443"] {
        let line = world.one(&["upload", to, "16"])?;
        assert!(line.contains(&format!("peer={to} workload=1")), "{line}");
    }
    assert_eq!(
        (world.count(Reason::Egress)?, world.count(Reason::Ingress)?),
        (0, 0)
    );
    Ok(())
}

pub(super) fn what_the_agent_sends_from_a_loopback_address_stays_on_the_host(
    world: &mut World,
) -> Result<()> {
    let far = "[2001:db8:113::9]:9";
    let socket = UdpSocket::bind("[::1]:0")?;
    let sent = socket.send_to(b"an answer", far);
    ensure!(
        sent.is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied),
        "it left"
    );
    assert_eq!(world.count(Reason::Reflected)?, 1);
    // From the host's own address it may, and from a loopback one to itself.
    UdpSocket::bind("[2001:db8:113::1]:0")?.send_to(b"a question", far)?;
    let own = socket.local_addr()?;
    socket.send_to(b"to itself", own)?;
    assert_eq!(world.count(Reason::Reflected)?, 1);
    Ok(())
}

pub(super) fn a_socket_under_repair_reaches_nobody(world: &mut World) -> Result<()> {
    world.serve(1, "one")?;
    for (named, other) in [
        ("192.0.2.1:443", "192.0.2.1:25"),
        ("[2001:db8::1]:443", "[2001:db8::1]:25"),
    ] {
        // It is turned to the listener, which knows of no such connection.
        let line = world.one(&["repair", named])?;
        assert!(line.starts_with("err"), "{line}");
        assert_eq!(world.one(&["repair", other])?, EPERM);
    }
    assert!(world.take_seen().is_empty());
    Ok(())
}

/// How a ring's entries are worked off; see the probe.
const RINGS: [&str; 3] = ["plain", "polled", "workers"];

pub(super) fn io_uring_connects_are_redirected(world: &mut World) -> Result<()> {
    world.serve(1, "one")?;
    if skip(&[Feature::IoUring])? {
        return Ok(());
    }
    for mode in RINGS {
        for (to, other) in [
            ("192.0.2.1:443", "192.0.2.1:25"),
            ("[2001:db8::1]:443", "[2001:db8::1]:25"),
        ] {
            assert_redirected(world, &["ring-tcp", mode, to], to)?;
            assert_eq!(world.one(&["ring-tcp", mode, other])?, EPERM, "{mode} {other}");
            // A socket without a descriptor, all of it in one chain.
            let line = world.one(&["ring-chain", mode, to])?;
            assert!(
                line.starts_with(&format!("ok workload=1 dst={to} ")),
                "{mode}: {line}"
            );
            assert!(world.take_seen().iter().all(Option::is_some), "{mode} {to}");
            assert_eq!(world.one(&["ring-chain", mode, other])?, EPERM, "{mode} {other}");
        }
    }
    Ok(())
}

pub(super) fn io_uring_sends_no_datagrams(world: &mut World) -> Result<()> {
    world.serve(1, "one")?;
    if skip(&[Feature::IoUring])? {
        return Ok(());
    }
    let beside = world.beside()?;
    for mode in RINGS {
        for operation in ["send", "sendmsg", "sendmsg-zc"] {
            for to in ["203.0.113.9:443", "[2001:db8:113::9]:443"] {
                let arguments = ["ring-udp", mode, operation, to];
                assert_eq!(world.one(&arguments)?, EPERM, "{arguments:?}");
                assert_eq!(world.probe(&beside, &arguments)?, "ok 4", "{arguments:?}");
            }
        }
    }
    assert_eq!(world.count(Reason::UdpNotAllowed)?, 18);
    Ok(())
}

pub(super) fn datagrams_that_nobody_asked_for_do_not_come_in(world: &mut World) -> Result<()> {
    let heard = |world: &World, on: &str| -> Result<String> {
        let mut listener = probe(&world.cgroup("one"), &["udp-listen", on])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(listener.stdout.take().context("no stdout")?).lines();
        assert_eq!(lines.next().context("it said nothing")??, "listening");
        // From an address of the network: what comes over loopback may be an answer of the stub's.
        let from = on.replace(":7777", ":0");
        UdpSocket::bind(from)?.send_to(b"hello", on)?;
        let line = lines.next().context("no result")??;
        listener.wait()?;
        Ok(line)
    };
    let both = ["203.0.113.1:7777", "[2001:db8:113::1]:7777"];
    for on in both {
        assert_eq!(heard(world, on)?, "ok hello", "{on}");
    }
    // What the plan says of listening is of TCP.
    let mut plan = world.plan(1, "one");
    plan.listen_ports = vec![7777];
    world.programs.arm(&plan)?;
    for on in both {
        assert_eq!(heard(world, on)?, "err 11", "{on}");
    }
    assert_eq!(world.count(Reason::Ingress)?, 2);
    Ok(())
}

/// Another host: accepts one connection on each family and prints what comes, a line each.
const PEER: &str = r#"
import socket, subprocess, sys, threading
for line in ("link set far0 up", "addr add 203.0.113.9/24 dev far0", "addr add 2001:db8:113::9/64 dev far0 nodad"):
    subprocess.run(["ip", *line.split()], check=True)
def serve(listener):
    while True:
        piece = listener.accept()[0].recv(64)
        print(piece.decode() or "nothing", flush=True)
for family, address in ((socket.AF_INET, "203.0.113.9"), (socket.AF_INET6, "2001:db8:113::9")):
    threading.Thread(target=serve, args=[socket.create_server((address, 9), family=family)]).start()
print("ready", flush=True)
"#;

/// The process that is the other host, at the far end of `out0`.
struct Peer {
    child: Child,
    said: Receiver<String>,
}

impl Peer {
    fn start() -> Result<Self> {
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo; read go; exec python3 -c \"$0\"", PEER])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().context("no stdout")?;
        let (to, said) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            BufReader::new(output)
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| to.send(line))
        });
        let mut peer = Self { child, said };
        peer.next()?;
        let pid = peer.child.id().to_string();
        let moved = Command::new("ip")
            .args(["link", "set", "far0", "netns", &pid])
            .status()?;
        ensure!(moved.success(), "far0 did not move");
        peer.child.stdin.take().context("no stdin")?.write_all(b"go\n")?;
        ensure!(peer.next()? == "ready", "the peer is not ready");
        Ok(peer)
    }

    fn next(&self) -> Result<String> {
        Ok(self.said.recv_timeout(Duration::from_secs(10))?)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

pub(super) fn a_connection_made_before_the_arming_sends_nothing_more(world: &mut World) -> Result<()> {
    let peer = Peer::start()?;
    let both = ["203.0.113.9:9", "[2001:db8:113::9]:9"];
    for to in both {
        let mut sender = Before::start(world, to)?;
        sender.send()?;
        assert_eq!(peer.next()?, "late", "{to}");
    }
    let mut senders = both
        .iter()
        .map(|to| Before::start(world, to))
        .collect::<Result<Vec<_>>>()?;
    world.serve(1, "one")?;
    for (sender, dropped) in senders.iter_mut().zip([1, 2]) {
        sender.send()?;
        until(|| Ok(world.count(Reason::Egress)? >= dropped))?;
    }
    // Again and again the kernel tries.
    until(|| Ok(world.count(Reason::Egress)? >= 6))?;
    assert!(peer.said.try_recv().is_err());
    Ok(())
}

/// A process with a connection that was made before its workload was armed.
struct Before(Child);

impl Before {
    fn start(world: &World, to: &str) -> Result<Self> {
        let mut child = probe(&world.cgroup("one"), &["tcp-before", to])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().context("no stdout")?;
        let own = Self(child);
        let first = BufReader::new(output)
            .lines()
            .next()
            .context("it said nothing")??;
        ensure!(first == "ready", "{first}");
        Ok(own)
    }

    /// It sends, and waits for the end of its input.
    fn send(&mut self) -> Result<()> {
        let input = self.0.stdin.as_mut().context("no stdin")?;
        Ok(input.write_all(b"go\n")?)
    }
}

impl Drop for Before {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

pub(super) fn a_socket_that_can_not_leave_its_device_is_refused(world: &mut World) -> Result<()> {
    world.serve(1, "one")?;
    for (to, refused) in [("192.0.2.1:443", 1), ("[2001:db8::1]:443", 2)] {
        assert_eq!(world.one(&["device-poor", to, "out0"])?, EPERM);
        assert_eq!(world.count(Reason::DeviceBound)?, refused);
    }
    assert!(world.take_seen().is_empty());
    Ok(())
}
