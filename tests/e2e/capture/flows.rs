//! The table of handshakes and the marks on sockets: one workload's use of them is no other's loss.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use callgate::ebpf::foreign::Standing;
use callgate::ebpf::{LoadOptions, Origins, Reason};
use socket2::{Domain, Socket, Type};

use super::cases::{ECONNREFUSED, assert_redirected, until};
use super::world::{World, probe};

/// Moves to the agent's cgroup, or away from it. Connections to listeners that were made away are seen by no program at
/// their end, so what the client's end puts into the table of handshakes stays there.
fn go(world: &World, cgroup: &str) -> Result<()> {
    let directory = world.base.join(cgroup);
    std::fs::create_dir_all(&directory)?;
    Ok(std::fs::write(directory.join("cgroup.procs"), "0")?)
}

/// Clients whose connections stay while this does: so long their entries may wait in the table.
struct Clients(Vec<Child>);

impl Drop for Clients {
    fn drop(&mut self) {
        for client in &mut self.0 {
            drop(client.stdin.take());
            client.wait().unwrap();
        }
    }
}

/// Connects as often from this workload; each connection is made, and the listener's end takes up none.
fn leave_handshakes(world: &World, name: &str, count: usize) -> Result<Clients> {
    let mut clients = Clients(Vec::new());
    for _ in 0..count {
        let mut client = probe(&world.cgroup(name), &["hold", "192.0.2.1:443"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(client.stdout.take().context("no stdout")?).lines();
        clients.0.push(client);
        assert_eq!(lines.next().context("it said nothing")??, "ready", "{name}");
    }
    Ok(clients)
}

/// Waits until both ends of every connection are closed: what a client's end takes back as it closes is taken back.
fn settle() -> Result<()> {
    const LISTEN: &str = "0A";
    const TIME_WAIT: &str = "06";
    until(|| {
        let table = std::fs::read_to_string("/proc/thread-self/net/tcp")?;
        let mut states = table
            .lines()
            .skip(1)
            .filter_map(|line| line.split_whitespace().nth(3));
        Ok(states.all(|state| state == LISTEN || state == TIME_WAIT))
    })
}

pub(super) fn a_full_flow_table_refuses_and_counts(world: &mut World) -> Result<()> {
    world.reload(LoadOptions {
        max_flows: 1,
        level: Some(tracing::Level::WARN),
        ..world.options.clone()
    })?;
    go(world, "away")?;
    world.serve(1, "one")?;
    world.serve(2, "two")?;
    let one = leave_handshakes(world, "one", 1)?;
    assert_eq!(world.count(Reason::FlowLost)?, 0);
    // A share of one each, and one place for both.
    let two = leave_handshakes(world, "two", 2)?;
    assert_eq!(world.count(Reason::FlowLost)?, 2);
    let fault = "workload 2: no room for a handshake, the connection will be refused";
    assert_eq!(world.programs.faults(), [fault, fault]);
    assert_eq!(world.programs.sweep_flows(Duration::ZERO)?, 1);
    assert_eq!(world.programs.sweep_flows(Duration::ZERO)?, 0);
    let again = leave_handshakes(world, "two", 1)?;
    assert_eq!(world.count(Reason::FlowLost)?, 2);
    drop((one, two, again));
    until(|| Ok(world.seen.lock().unwrap().len() == 4))?;
    assert_eq!(world.take_seen(), [None; 4]);
    Ok(())
}

pub(super) fn a_workload_that_fills_its_share_keeps_nobody_else_out(world: &mut World) -> Result<()> {
    const SHARE: usize = 4;
    world.reload(LoadOptions {
        max_flows: 2 * u32::try_from(SHARE)?,
        ..world.options.clone()
    })?;
    go(world, "away")?;
    world.serve(1, "one")?;
    world.serve(2, "two")?;
    let one = leave_handshakes(world, "one", SHARE)?;
    for _ in 0..3 {
        assert_eq!(world.one(&["tcp", "192.0.2.1:443"])?, ECONNREFUSED);
    }
    assert_eq!(world.count(Reason::FlowShare)?, 3);
    assert_eq!(world.reasons(), [Reason::FlowShare; 3]);
    let two = leave_handshakes(world, "two", SHARE)?;
    assert_eq!(world.count(Reason::FlowLost)?, 0);
    // What is cleared away is room again, no more and no less.
    assert_eq!(world.programs.sweep_flows(Duration::ZERO)?, 2 * SHARE);
    let more = leave_handshakes(world, "one", SHARE)?;
    assert_eq!(world.one(&["tcp", "192.0.2.1:443"])?, ECONNREFUSED);
    // So is what clients take back that have gone.
    drop((one, two, more));
    until(|| Ok(world.seen.lock().unwrap().len() == 3 * SHARE))?;
    settle()?;
    assert_eq!(world.programs.sweep_flows(Duration::ZERO)?, 0);
    drop(leave_handshakes(world, "one", SHARE)?);
    until(|| Ok(world.seen.lock().unwrap().len() == 4 * SHARE))?;
    settle()?;
    assert_eq!(world.take_seen(), [None; 4 * SHARE]);
    // The listener's side again: what it takes out is room too.
    go(world, "agent")?;
    world.serve(1, "one")?;
    for _ in 0..3 * SHARE {
        assert_redirected(world, &["tcp", "192.0.2.1:443"], "192.0.2.1:443")?;
    }
    assert_eq!(world.count(Reason::FlowShare)?, 4);
    Ok(())
}

pub(super) fn a_connection_that_is_gone_lends_nobody_its_name(world: &mut World) -> Result<()> {
    const CLIENT: &str = "127.0.0.9:4321";
    world.programs.arm(&world.plan(1, "one"))?;
    // Seen by no program at its end, as one whose queue is full when the client's last packet comes.
    go(world, "away")?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    world.programs.mark_listener(1, listener.as_fd())?;
    assert_eq!(world.one(&["reset", "192.0.2.1:443", CLIENT])?, "ok");
    drop(listener);
    go(world, "agent")?;
    let listener = TcpListener::bind(address)?;
    world.programs.mark_listener(1, listener.as_fd())?;
    // Somebody outside takes the same address.
    let other = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    other.set_reuse_address(true)?;
    other.bind(&CLIENT.parse::<SocketAddr>()?.into())?;
    other.connect(&address.into())?;
    let (accepted, from) = listener.accept()?;
    assert_eq!(from, CLIENT.parse()?);
    let origins = Origins::new(world.programs.worker_fds()?.origins)?;
    assert_eq!(origins.of(&accepted)?, None);
    assert_eq!(world.programs.sweep_flows(Duration::ZERO)?, 0);
    Ok(())
}

pub(super) fn what_a_workload_accepted_is_its_own(world: &mut World) -> Result<()> {
    let mut plan = world.plan(1, "one");
    plan.listen_ports = vec![8080];
    world.programs.arm(&plan)?;
    let marks = world.programs.marks()?;
    let mut server = probe(&world.cgroup("one"), &["listen-hold", "127.0.0.1:8080"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(server.stdout.take().context("no stdout")?).lines();
    assert_eq!(lines.next().context("it said nothing")??, "listening");
    let client = TcpStream::connect("127.0.0.1:8080")?;
    // Its listener and the accepted socket, in this order.
    let numbers = lines.next().context("it said nothing")??;
    let process = rustix::process::Pid::from_raw(i32::try_from(server.id())?).context("a pid")?;
    let handle = rustix::process::pidfd_open(process, rustix::process::PidfdFlags::empty())?;
    for number in numbers.split(' ') {
        let flags = rustix::process::PidfdGetfdFlags::empty();
        let socket = rustix::process::pidfd_getfd(&handle, number.parse()?, flags)?;
        assert_eq!(marks.standing(&socket, 1, &[])?, Standing::Own, "{number}");
        assert_eq!(marks.standing(&client, 1, &[])?, Standing::Foreign);
        // To another workload's process both would be what was handed in.
        let other = marks.standing(&socket, 2, &[])?;
        assert!(other != Standing::Own, "{number}: {other:?}");
    }
    let (one, _two) = std::os::unix::net::UnixStream::pair()?;
    assert_eq!(marks.standing(&one, 1, &[])?, Standing::Own);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    assert_eq!(marks.standing(&listener, 1, &[])?, Standing::LetIn);
    server.stdin.take().context("no stdin")?.write_all(b"go\n")?;
    server.wait()?;
    Ok(())
}
