//! Names: what a workload may ask, and that it gets the same answers and records by TCP as by UDP, with real clients.

use std::fmt::Write as _;
use std::net::{SocketAddr, UdpSocket};
use std::{fs, thread};

use anyhow::{Context, Result};
use harness::{Upstream, World, assert_record, require, wait};

use crate::audit::call;
use crate::identity::{API, workload};

const MANY: &str = "many.example.test";
/// More addresses than a datagram has room for, with EDNS too.
const ADDRESSES: usize = 120;

/// Asks this often on one connection, all at once, and prints how many answers came, and all their kinds: code and number
/// of addresses.
const PIPELINE: &str = r#"
import socket, struct, sys
name, count = sys.argv[1], int(sys.argv[2])
labels = b"".join(bytes([len(l)]) + l.encode() for l in name.split("."))
def question(id):
    body = struct.pack(">HHHHHH", id, 0x100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", 1, 1)
    return struct.pack(">H", len(body)) + body
s = socket.create_connection(("192.0.2.53", 53), 5)
s.sendall(b"".join(question(id) for id in range(count)))
s.shutdown(socket.SHUT_WR)
data = b""
while piece := s.recv(65536):
    data += piece
ids, kinds = set(), set()
while data:
    (length,) = struct.unpack(">H", data[:2])
    id, flags, _, answers = struct.unpack(">HHHH", data[2:10])
    kinds.add((flags & 0xf, answers))
    ids.add(id)
    data = data[2 + length:]
print(len(ids), kinds)
"#;

/// Says something else than DNS and prints what came back.
const NOT_DNS: &str = r#"
import socket
s = socket.create_connection(("192.0.2.53", 53), 5)
s.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
try:
    print(len(s.recv(100)))
except ConnectionResetError:
    print(0)
"#;

/// A world in which the agent knows two names, and its clients none: what these know came from the agent.
fn world() -> Result<World> {
    let mut world = World::new()?;
    world.upstream(Upstream::new(API))?;
    let hosts = world.dir().join("hosts");
    let mut known = fs::read_to_string(&hosts)?;
    for n in 0..ADDRESSES {
        writeln!(known, "198.51.100.{n} {MANY}")?;
    }
    fs::write(&hosts, known)?;
    let many = format!("\n  [[workload.allow]]\n  host = \"{MANY}\"\n");
    world.policy("billing.toml", &(workload("billing", "", "") + &many))?;
    world.start_agent()?;
    fs::write(&hosts, "127.0.0.1 localhost\n")?;
    Ok(world)
}

/// A resolver that fails at each question.
fn broken_resolver() -> Result<SocketAddr> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let address = socket.local_addr()?;
    thread::spawn(move || {
        let mut message = [0; 512];
        while let Ok((length, who)) = socket.recv_from(&mut message) {
            // A response, with code SERVFAIL.
            message[2] |= 0x80;
            message[3] = message[3] & 0xf0 | 2;
            drop(socket.send_to(&message[..length], who));
        }
    });
    Ok(address)
}

fn dig(world: &World, args: &[&str]) -> Result<String> {
    let args = ["dig", "@192.0.2.53", "+time=5", "+tries=1"].iter().chain(args);
    world.workload("billing")?.run(args)?.ok()
}

#[test]
fn dig_gets_the_same_by_tcp_as_by_udp() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = world()?;
    let mut told = Vec::new();
    for (way, protocol) in [("+tcp", "tcp"), ("+notcp", "udp")] {
        let addresses = dig(&world, &[way, "+short", API, "A", API, "AAAA"])?;
        assert_eq!(addresses.lines().count(), 2, "{addresses}");
        told.push(addresses);
        // ECH and HTTP/3 hints are not told.
        let https = dig(&world, &[way, API, "HTTPS"])?;
        assert!(
            https.contains("status: NOERROR") && https.contains("ANSWER: 0"),
            "{https}"
        );
        let name = format!("{protocol}.other.example.test");
        let other = dig(&world, &[way, &name])?;
        assert!(other.contains("status: NXDOMAIN"), "{other}");
        let record = assert_record!(
            world,
            "kind" = "dns",
            "workload" = "billing",
            "authority" = format!("{name}."),
            "protocol" = protocol,
            "outcome" = "denied",
            "reason" = "host_not_allowed"
        );
        // A connection says who asks; a datagram, only which workload.
        let exe = if protocol == "tcp" { "/usr/bin/dig" } else { "-" };
        assert_eq!(record.text("exe.path"), exe);
    }
    assert_eq!(told[0], told[1]);
    Ok(())
}

#[test]
fn an_answer_too_long_for_a_datagram_comes_by_tcp() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = world()?;
    for edns in ["+noedns", "+bufsize=4096"] {
        let cut = dig(&world, &[edns, "+ignore", MANY])?;
        assert!(
            cut.contains("flags: qr tc rd ra;") && cut.contains("ANSWER: 0"),
            "{cut}"
        );
        let whole = dig(&world, &[edns, MANY])?;
        assert!(whole.contains("Truncated, retrying in TCP mode"), "{whole}");
        assert!(whole.contains(&format!("ANSWER: {ADDRESSES},")), "{whole}");
    }
    Ok(())
}

#[test]
fn programs_that_resolve_by_tcp_alone_work() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = world()?;
    let resolv = "nameserver 192.0.2.53\noptions use-vc timeout:5 attempts:1\n";
    fs::write(world.dir().join("resolv.conf"), resolv)?;
    let found = world.workload("billing")?.run(["getent", "ahosts", API])?.ok()?;
    assert!(
        found.contains("203.0.113.10") && found.contains("2001:db8:113::"),
        "{found}"
    );
    assert_eq!(call(&world, "/by-tcp")?, 200);
    assert_record!(world, "path" = "/by-tcp", "outcome" = "completed");
    let unknown = world
        .workload("billing")?
        .run(["getent", "ahosts", "b.example.test"])?;
    assert_eq!(unknown.code(), Some(2), "{unknown:?}");
    let asked = wait::until("a refusal on record", wait::PATIENCE, || {
        let records = world.records().ok()?;
        records
            .into_iter()
            .find(|one| one.text("authority") == "b.example.test.")
    })?;
    assert_eq!(
        (asked.text("protocol"), asked.text("exe.path")),
        ("tcp".into(), "/usr/bin/getent".into())
    );
    Ok(())
}

#[test]
fn many_questions_on_one_connection_are_answered_and_what_is_no_dns_is_recorded() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = world()?;
    let client = world.workload("billing")?;
    let answered = client.run(["python3", "-c", PIPELINE, API, "200"])?.ok()?;
    assert_eq!(answered, "200 {(0, 1)}\n");
    assert_eq!(client.run(["python3", "-c", NOT_DNS])?.ok()?, "0\n");
    let record = assert_record!(
        world,
        "kind" = "connection",
        "original_destination" = "192.0.2.53:53",
        "outcome" = "denied",
        "reason" = "malformed_request"
    );
    let said = record.text("error.message");
    assert!(said.contains("DNS"), "{said}");
    let questions = world
        .records()?
        .into_iter()
        .filter(|one| one.text("kind") == "dns");
    assert_eq!(questions.count(), 0, "allowed questions are no calls");
    world.agent().context("it runs")?;
    Ok(())
}

#[test]
fn a_flood_of_refused_questions_is_counted_to_its_end() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = world()?;
    let script = ["python3", "-c", PIPELINE, "secret.evil.test", "200"];
    let answered = world.workload("billing")?.run(script)?.ok()?;
    assert_eq!(answered, "200 {(3, 0)}\n");
    let mut written = 0;
    wait::until("each question on record", wait::PATIENCE, || {
        let mut records = world.records().ok()?;
        records.retain(|one| one.text("reason") == "host_not_allowed");
        assert!(records.iter().all(|one| one.text("workload") == "billing"));
        written = records.len();
        let counts = records.iter().map(|one| one.field("count").as_u64().unwrap_or(1));
        (counts.sum::<u64>() == 200).then_some(())
    })?;
    assert!(written < 150, "{written} records");
    Ok(())
}

#[test]
fn a_deny_does_not_open_the_names_that_it_denies() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = World::new()?;
    world.upstream(Upstream::new(API))?;
    // Known to the agent's resolver, so that only the rules keep it back.
    world.absent("secret.a.evil.test")?;
    let deny = "\n  [[workload.deny]]\n  host = \"*.evil.test\"\n";
    world.policy("billing.toml", &(workload("billing", "", "") + deny))?;
    world.start_agent()?;
    let denied = dig(&world, &["secret.a.evil.test"])?;
    assert!(denied.contains("status: NXDOMAIN"), "{denied}");
    assert_record!(
        world,
        "kind" = "dns",
        "authority" = "secret.a.evil.test.",
        "outcome" = "denied"
    );
    Ok(())
}

#[test]
fn names_that_do_not_resolve_fill_no_log() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = World::new()?;
    world.upstream(Upstream::new(API))?;
    world.settings(&format!("resolvers = [\"{}\"]", broken_resolver()?));
    let wild = "\n  [[workload.allow]]\n  host = \"*.wild.test\"\n";
    world.policy("billing.toml", &(workload("billing", "", "") + wild))?;
    world.start_agent()?;
    let script = ["python3", "-c", PIPELINE, "a.wild.test", "200"];
    let answered = world.workload("billing")?.run(script)?.ok()?;
    assert_eq!(answered, "200 {(2, 0)}\n", "server failures");
    let log = world.agent()?.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("a.wild.test")).collect();
    assert!((1..=12).contains(&lines.len()), "{lines:#?}");
    assert!(lines[0].contains("could not be resolved"), "{lines:#?}");
    Ok(())
}
