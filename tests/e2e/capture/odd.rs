//! Ways to connect that few programs use, and packets of odd forms.

use std::net::UdpSocket;
use std::process::Command;

use anyhow::{Result, ensure};
use callgate::ebpf::Reason;
use harness::Feature;
use harness::kernel::skip;

use super::cases::{EPERM, assert_redirected};
use super::world::World;

pub(super) fn io_uring_connects_are_redirected(world: &mut World) -> Result<()> {
    world.serve(1, "one")?;
    if skip(&[Feature::IoUring])? {
        return Ok(());
    }
    assert_redirected(world, &["io-uring", "192.0.2.1:443"], "192.0.2.1:443")?;
    assert_redirected(world, &["io-uring", "[2001:db8::1]:443"], "[2001:db8::1]:443")?;
    assert_eq!(world.one(&["io-uring", "192.0.2.1:25"])?, EPERM);
    Ok(())
}

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
