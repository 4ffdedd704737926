//! Sockets that were made outside of a workload and reach one of its processes as descriptors.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use harness::audit::matching;
use harness::sandbox::HOST_V4;
use harness::{World, require, wait};

use crate::audit::agent_status;
use crate::identity::{start, workload};

const SINK: (Ipv4Addr, Ipv6Addr) = (
    Ipv4Addr::new(203, 0, 113, 10),
    Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 10),
);
/// Sockets that the lender makes: three TCP connections or UDP associations lead to the sink.
const HANDED: u64 = 8;
const LEADING: usize = 3;

/// Else a command sees no socket in `/tmp`, where the lender's is.
const SHARED: &str = "--shared-tmp";

/// A script with its arguments after the addresses.
fn script(text: &str, first: &str, rest: &[&str]) -> Vec<String> {
    let fixed = ["python3", "-c", text, first].map(ToOwned::to_owned);
    let addresses = [SINK.0.to_string(), SINK.1.to_string()];
    let rest = rest.iter().map(|one| (*one).to_owned());
    fixed.into_iter().chain(addresses).chain(rest).collect()
}

#[test]
fn a_socket_made_outside_and_handed_in_is_cut_off_and_recorded() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start(&workload("billing", "listen = [8080]", ""))?;
    let arrived = world.dir().join("arrived");
    let log = arrived.to_str().context("a path")?;
    let sink = script(include_str!("handed/sink.py"), log, &[&HOST_V4.to_string()]);
    let _sink = world.outside()?.command(sink).spawn()?;
    let said = || fs::read_to_string(&arrived).unwrap_or_default();
    wait::until("the sink", wait::PATIENCE, || {
        said().contains("ready").then_some(())
    })?;

    // Not right below a directory in /tmp, which would be out of sight for its socket.
    let lent = world.dir().join("run/lent.sock");
    let lent = lent.to_str().context("a path")?;
    let lender = script(include_str!("handed/lender.py"), lent, &[]);
    let mut lender = world
        .unmanaged()?
        .command(lender)
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(lender.stdout.take().context("no stdout")?).read_line(&mut line)?;
    ensure!(line == "ready\n", "the lender: {line}");
    let reply = world.workload("billing")?.exec_option(SHARED).run(script(
        include_str!("handed/borrower.py"),
        lent,
        &[],
    ))?;
    assert_eq!(
        reply.clone().ok()?,
        "led out: []; own: answered asked\n",
        "{reply:?}"
    );
    assert!(!said().contains("LATE"), "{}", said());
    check_records(&world)
}

fn check_records(world: &World) -> Result<()> {
    let records = wait::until("a record of each socket", wait::PATIENCE, || {
        let all = world.records().ok()?;
        let expected = [("reason", "handed_socket".into()), ("workload", "billing".into())];
        let found: Vec<_> = matching(&all, &expected).into_iter().cloned().collect();
        let count: u64 = found.iter().filter_map(|one| one.field("count").as_u64()).sum();
        (count == HANDED).then_some(found)
    })?;
    let destination = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => format!("{v4}:7777"),
        IpAddr::V6(v6) => format!("[{v6}]:7777"),
    };
    let leading = records.iter().filter(|one| {
        let to = one.text("original_destination");
        to == destination(SINK.0.into()) || to == destination(SINK.1.into())
    });
    assert_eq!(leading.count(), LEADING, "{records:?}");
    for record in &records {
        assert_eq!(record.text("decision"), "deny", "{record:?}");
        // The path only while the process lives.
        assert!(record.text("comm").contains("python"), "{record:?}");
        assert!(record.field("exe.inode").is_u64(), "{record:?}");
    }
    let (_, status) = agent_status(world)?;
    assert_eq!(
        status["kernel"]["handed_socket"].as_u64(),
        Some(HANDED),
        "{status}"
    );
    Ok(())
}

/// Hands in a packet socket: on Linux family 17.
const LEND_PACKETS: &str = "import array, socket, sys
packets, server = socket.socket(17, 3, 0x300), socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
print('ready', flush=True)
client, _ = server.accept()
client.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [packets.fileno()]))])
client.recv(1)";
const HOLD: &str = "import socket, sys
lender = socket.socket(socket.AF_UNIX)
lender.connect(sys.argv[1])
held = lender.recvmsg(1, 100)
sys.stdin.read()";

#[test]
fn a_handed_socket_that_can_not_be_cut_off_is_named_in_the_log_and_on_record() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start(&workload("billing", "", ""))?;
    let lent = world.dir().join("run/lent.sock");
    let lent = lent.to_str().context("a path")?;
    let lend = ["python3", "-c", LEND_PACKETS, lent];
    let mut lender = world.unmanaged()?.command(lend).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(lender.stdout.take().context("no stdout")?).read_line(&mut line)?;
    let mut borrower = world
        .workload("billing")?
        .exec_option(SHARED)
        .command(["python3", "-c", HOLD, lent])
        .stdin(Stdio::piped())
        .spawn()?;
    wait::until("a word in the log", wait::PATIENCE, || {
        let log = world.agent().ok()?.log();
        let named = |line: &str| {
            line.contains("no program sees sockets of family 17") && line.contains("end the process")
        };
        log.lines().any(named).then_some(())
    })?;
    let expected = [
        ("error.kind", "handed_socket".into()),
        ("workload", "billing".into()),
    ];
    let record = world.expect_record(&expected)?;
    assert_eq!(
        (record.text("outcome").as_str(), record.text("comm").as_str()),
        ("failed", "python3"),
        "{record:?}"
    );
    let message = record.text("error.message");
    assert!(
        message.ends_with("no program sees sockets of family 17"),
        "{message}"
    );
    drop(borrower.stdin.take());
    assert!(harness::launch::wait_for(&mut borrower, wait::PATIENCE)?.success());
    Ok(())
}

/// Hands in a listener on a port that the policy opens.
const LEND_LISTENER: &str = "import array, socket, sys
listener, server = socket.create_server(('', 8080)), socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
print('ready', flush=True)
client, _ = server.accept()
client.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [listener.fileno()]))])
client.recv(1)";
/// Takes a connection on it, as it may, and then leads both elsewhere from the open port.
const LEAD_LISTENER: &str = "import array, socket, sys, time
LOCK_FILTER = 44
def is_held(one):
    return one.getsockopt(socket.SOL_SOCKET, LOCK_FILTER) == 1
lender = socket.socket(socket.AF_UNIX)
lender.connect(sys.argv[1])
messages = lender.recvmsg(1, socket.CMSG_SPACE(4))[1]
listener = socket.socket(fileno=array.array('i', messages[0][2])[0])
deadline = time.monotonic() + 10
accepted = listener.accept()[0]
accepted.settimeout(5)
while not (is_held(listener) and is_held(accepted)) and time.monotonic() < deadline:
    time.sleep(0.02)
accepted.sendall(b'asked')
print(accepted.recv(9).decode(), is_held(listener), is_held(accepted))
for option in (LOCK_FILTER, 27):
    try:
        listener.setsockopt(socket.SOL_SOCKET, option, 0)
        print('FREED', option)
    except OSError:
        pass
listener.shutdown(socket.SHUT_RDWR)
listener.settimeout(1)
try:
    listener.connect((sys.argv[2], 7777))
    print('CONNECTED')
except OSError:
    print('led nowhere')";
/// Outside: connects to the port that is open, and would take what is led here.
const CALLER: &str = "import select, socket, sys, time
sink = socket.create_server(('', 7777))
while True:
    try:
        caller = socket.create_connection((sys.argv[1], 8080), 5)
        break
    except OSError:
        time.sleep(0.05)
asked = caller.recv(9)
caller.sendall(b'answered')
print(asked.decode(), 'ARRIVED' if select.select([sink], [], [], 3)[0] else 'and nothing came')";

#[test]
fn a_listener_handed_in_takes_connections_and_can_not_be_led_elsewhere_from_its_open_port() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start(&workload("billing", "listen = [8080]", ""))?;
    let lent = world.dir().join("run/lent.sock");
    let lent = lent.to_str().context("a path")?;
    let mut lender = world
        .unmanaged()?
        .command(["python3", "-c", LEND_LISTENER, lent])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(lender.stdout.take().context("no stdout")?).read_line(&mut line)?;
    let caller = ["python3", "-c", CALLER, &HOST_V4.to_string()];
    let caller = world.outside()?.command(caller).stdout(Stdio::piped()).spawn()?;
    // An address of the outside that no upstream has.
    let to = SINK.0.to_string();
    let reply =
        world
            .workload("billing")?
            .exec_option(SHARED)
            .run(["python3", "-c", LEAD_LISTENER, lent, &to])?;
    assert_eq!(
        reply.clone().ok()?,
        "answered True True\nled nowhere\n",
        "{reply:?}"
    );
    let said = caller.wait_with_output()?;
    assert_eq!(String::from_utf8(said.stdout)?, "asked and nothing came\n");
    Ok(())
}
