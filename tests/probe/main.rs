//! A client for the capture tests: joins a cgroup, does one thing with sockets, prints one line on it.
//!
//! `probe CGROUP OPERATION ARGUMENTS...`; prints `ok ...` or `err ERRNO`.
#![expect(clippy::print_stdout, reason = "the line is the result")]

mod disguise;
mod odd;
mod ring;

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, SocketAddrV6};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

const PATIENCE: Duration = Duration::from_secs(10);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(line) => println!("ok {line}"),
        Err(error) => println!(
            "err {}",
            error
                .raw_os_error()
                .map_or_else(|| error.to_string(), |code| code.to_string())
        ),
    }
}

fn run(arguments: &[String]) -> io::Result<String> {
    let [cgroup, operation, rest @ ..] = arguments else {
        return Err(io::Error::other("usage"));
    };
    let join = || std::fs::write(format!("{cgroup}/cgroup.procs"), "0");
    if operation == "enrolled-late" {
        let socket = tcp(&address(rest, 0)?)?;
        join()?;
        return talk(&socket, &address(rest, 0)?.into());
    }
    // Under `exec` it is there already.
    if cgroup != "-" {
        join()?;
    }
    match operation.as_str() {
        "tcp" => talk(&tcp(&address(rest, 0)?)?, &address(rest, 0)?.into()),
        "mapped" => mapped(address(rest, 0)?),
        "nonblocking" => nonblocking(address(rest, 0)?),
        "fastopen" => fastopen(address(rest, 0)?),
        "fastopen-connect" => odd::fastopen_connect(address(rest, 0)?),
        "fastopen-sendmsg" => odd::fastopen_sendmsg(address(rest, 0)?),
        "repair" => odd::repair(address(rest, 0)?),
        "bound" => bound(address(rest, 0)?, address(rest, 1)?),
        "ring-tcp" => ring::tcp(text(rest, 0)?, address(rest, 1)?),
        "ring-chain" => ring::chain(text(rest, 0)?, address(rest, 1)?),
        "ring-udp" => ring::udp(text(rest, 0)?, text(rest, 1)?, address(rest, 2)?),
        "addrform" => odd::addrform(address(rest, 0)?),
        "routed" => odd::routed(address(rest, 0)?, address(rest, 1)?, Type::STREAM),
        "routed-udp" => odd::routed(address(rest, 0)?, address(rest, 1)?, Type::DGRAM),
        "upload" => odd::upload(address(rest, 0)?, number(rest, 1)?),
        "device" => device(address(rest, 0)?, text(rest, 1)?),
        "again" => again(address(rest, 0)?, address(rest, 1)?),
        "udp-connect" => udp(address(rest, 0)?, true),
        "udp-send" => udp(address(rest, 0)?, false),
        "socket" => make(rest),
        "storm" => storm(rest),
        "listen" => listen(address(rest, 0)?),
        "listen-hold" => listen_hold(address(rest, 0)?),
        "lend" => lend(text(rest, 0)?, address(rest, 1)?),
        "flood" => flood(address(rest, 0)?, number(rest, 1)?),
        "hold" => hold(address(rest, 0)?),
        "reset" => reset(address(rest, 0)?, address(rest, 1)?),
        "tcp-before" => tcp_before(address(rest, 0)?),
        "udp-listen" => udp_listen(address(rest, 0)?),
        "device-poor" => device_poor(address(rest, 0)?, text(rest, 1)?),
        "connected-before" => connected_before(address(rest, 0)?),
        "disguised" => disguised(rest),
        "handed" => handed(address(rest, 0)?),
        _ => Err(io::Error::other("unknown operation")),
    }
}

/// `disguised HOST PATH [FILE]`: a plain call, as a process that runs that file; gives the status and what is said to run.
fn disguised(rest: &[String]) -> io::Result<String> {
    if let Some(file) = rest.get(2) {
        disguise::as_file(file)?;
    }
    let (host, path) = (text(rest, 0)?, text(rest, 1)?);
    let mut stream = std::net::TcpStream::connect((host, 80))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).unwrap_or("none");
    let runs = std::fs::read_link("/proc/self/exe")?;
    Ok(format!("{status} {}", runs.display()))
}

fn text(rest: &[String], index: usize) -> io::Result<&str> {
    rest.get(index)
        .map(String::as_str)
        .ok_or_else(|| io::Error::other("an argument is missing"))
}

fn address(rest: &[String], index: usize) -> io::Result<SocketAddr> {
    text(rest, index)?.parse().map_err(io::Error::other)
}

fn number(rest: &[String], index: usize) -> io::Result<i32> {
    text(rest, index)?.parse().map_err(io::Error::other)
}

fn tcp(to: &SocketAddr) -> io::Result<Socket> {
    Socket::new(Domain::for_address(*to), Type::STREAM, Some(Protocol::TCP))
}

/// Connects and gives what both ends say: the peer as seen here, and the agent's line.
fn talk(socket: &Socket, to: &SockAddr) -> io::Result<String> {
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(to)?;
    answer(socket)
}

fn answer(socket: &Socket) -> io::Result<String> {
    let peer = socket
        .peer_addr()?
        .as_socket()
        .ok_or_else(|| io::Error::other("no peer"))?;
    socket.shutdown(Shutdown::Write)?;
    let mut line = String::new();
    let mut stream = socket;
    stream.read_to_string(&mut line)?;
    Ok(format!("pid={} peer={peer} {line}", std::process::id()))
}

fn mapped(to: SocketAddr) -> io::Result<String> {
    let SocketAddr::V4(v4) = to else {
        return Err(io::Error::other("not IPv4"));
    };
    let to = SocketAddr::V6(SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0));
    talk(
        &Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?,
        &to.into(),
    )
}

fn nonblocking(to: SocketAddr) -> io::Result<String> {
    let socket = tcp(&to)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        other => other?,
    }
    let fd = std::os::fd::AsFd::as_fd(&socket);
    let mut polled = [nix::poll::PollFd::new(fd, nix::poll::PollFlags::POLLOUT)];
    nix::poll::poll(&mut polled, nix::poll::PollTimeout::from(10_000_u16))?;
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    answer(&socket)
}

fn fastopen(to: SocketAddr) -> io::Result<String> {
    let socket = tcp(&to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send_to_with_flags(b"early", &to.into(), libc::MSG_FASTOPEN)?;
    answer(&socket)
}

fn bound(to: SocketAddr, from: SocketAddr) -> io::Result<String> {
    let socket = tcp(&to)?;
    socket.set_reuse_address(true)?;
    socket.bind(&from.into())?;
    talk(&socket, &to.into())
}

fn device(to: SocketAddr, name: &str) -> io::Result<String> {
    let socket = tcp(&to)?;
    socket.bind_device(Some(name.as_bytes()))?;
    talk(&socket, &to.into())
}

/// Connects, dissolves the association with AF_UNSPEC, connects elsewhere.
fn again(first: SocketAddr, second: SocketAddr) -> io::Result<String> {
    let socket = tcp(&first)?;
    let one = talk(&socket, &first.into())?;
    dissolve(&socket)?;
    Ok(format!("{one}|{}", talk(&socket, &second.into())?))
}

#[expect(unsafe_code, reason = "no safe wrapper makes an AF_UNSPEC address")]
fn dissolve(socket: &Socket) -> io::Result<()> {
    let nobody = libc::sockaddr {
        sa_family: 0,
        sa_data: [0; 14],
    };
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr>()).map_err(io::Error::other)?;
    // SAFETY: a whole sockaddr of the stated length.
    let answer = unsafe { libc::connect(socket.as_raw_fd(), &raw const nobody, length) };
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn udp(to: SocketAddr, connect: bool) -> io::Result<String> {
    let any: SocketAddr = if to.is_ipv4() {
        ([0; 4], 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = std::net::UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    if connect {
        socket.connect(to)?;
        socket.send(b"question")?;
    } else {
        socket.send_to(b"question", to)?;
    }
    let mut buffer = [0; 64];
    let (length, from) = socket.recv_from(&mut buffer)?;
    let peer = socket
        .peer_addr()
        .map_or_else(|_| "none".into(), |peer| peer.to_string());
    Ok(format!(
        "from={from} peer={peer} {}",
        String::from_utf8_lossy(buffer.get(..length).unwrap_or_default())
    ))
}

fn make(rest: &[String]) -> io::Result<String> {
    let (domain, kind, protocol) = (number(rest, 0)?, number(rest, 1)?, number(rest, 2)?);
    Socket::new(domain.into(), kind.into(), Some(protocol.into()))?;
    Ok(String::new())
}

/// `storm THREADS EACH WORKLOAD`: every connection has a destination of its own, which the agent must name.
fn storm(rest: &[String]) -> io::Result<String> {
    let (threads, each, workload) = (number(rest, 0)?, number(rest, 1)?, number(rest, 2)?);
    let workers: Vec<_> = (0..threads)
        .map(|thread| std::thread::spawn(move || storm_thread(thread, each, workload)))
        .collect();
    let mut total = (0, 0);
    for worker in workers {
        let (answered, reset) = worker
            .join()
            .map_err(|_panic| io::Error::other("a thread failed"))??;
        total = (total.0 + answered, total.1 + reset);
    }
    Ok(format!("{} {}", total.0, total.1))
}

fn storm_thread(thread: i32, each: i32, workload: i32) -> io::Result<(u32, u32)> {
    let part = |value: i32| u8::try_from(value & 0xff).map_err(io::Error::other);
    let mut counts = (0, 0);
    for turn in 0..each {
        let to = SocketAddr::from(([198, 18 + part(workload)?, part(thread)?, part(turn)?], 443));
        let socket = tcp(&to)?;
        if turn % 10 == 9 {
            socket.connect(&to.into())?;
            socket.set_linger(Some(Duration::ZERO))?;
            counts.1 += 1;
            continue;
        }
        let said = talk(&socket, &to.into())?;
        if !said.contains(&format!("workload={workload} ")) || !said.contains(&format!("dst={to} ")) {
            return Err(io::Error::other(format!(
                "{to} of {workload} was taken for: {said}"
            )));
        }
        counts.0 += 1;
    }
    Ok(counts)
}

/// Listens, says so, waits for one connection and answers it.
fn listen(on: SocketAddr) -> io::Result<String> {
    let listener = std::net::TcpListener::bind(on)?;
    println!("listening");
    io::stdout().flush()?;
    let (mut stream, _) = listener.accept()?;
    stream.write_all(b"served")?;
    Ok("served".into())
}

/// Listens, says so, accepts one connection, gives both descriptors' numbers and holds them until told to go.
fn listen_hold(on: SocketAddr) -> io::Result<String> {
    let listener = std::net::TcpListener::bind(on)?;
    println!("listening");
    io::stdout().flush()?;
    let (stream, _) = listener.accept()?;
    println!("{} {}", listener.as_raw_fd(), stream.as_raw_fd());
    io::stdout().flush()?;
    io::stdin().read_line(&mut String::new())?;
    Ok(String::new())
}

/// Connects with the socket that standard input is: made by another.
fn handed(to: SocketAddr) -> io::Result<String> {
    let fd = std::os::fd::AsFd::as_fd(&io::stdin()).try_clone_to_owned()?;
    talk(&Socket::from(fd), &to.into())
}

/// Makes a socket here, moves to another cgroup, connects there.
fn lend(other: &str, to: SocketAddr) -> io::Result<String> {
    let socket = tcp(&to)?;
    std::fs::write(format!("{other}/cgroup.procs"), "0")?;
    talk(&socket, &to.into())
}

/// Connects again and again; gives how often that was refused.
fn flood(to: SocketAddr, count: i32) -> io::Result<String> {
    let mut refused = 0;
    for _ in 0..count {
        refused += u32::from(tcp(&to)?.connect(&to.into()).is_err());
    }
    Ok(refused.to_string())
}

/// Connects, says so, and lets go when told to.
fn hold(to: SocketAddr) -> io::Result<String> {
    let socket = tcp(&to)?;
    socket.connect(&to.into())?;
    println!("ready");
    io::stdout().flush()?;
    io::stdin().read_line(&mut String::new())?;
    Ok(String::new())
}

/// Connects from this address and ends the connection at once, without a word.
fn reset(to: SocketAddr, from: SocketAddr) -> io::Result<String> {
    let socket = tcp(&to)?;
    socket.set_reuse_address(true)?;
    socket.bind(&from.into())?;
    socket.connect(&to.into())?;
    socket.set_linger(Some(Duration::ZERO))?;
    Ok(String::new())
}

/// Connects a UDP socket, says so, and sends when told to.
fn connected_before(to: SocketAddr) -> io::Result<String> {
    let socket = std::net::UdpSocket::bind(("0.0.0.0", 0))?;
    socket.connect(to)?;
    println!("ready");
    io::stdout().flush()?;
    io::stdin().read_line(&mut String::new())?;
    socket.send(b"late").map(|sent| sent.to_string())
}

/// The same of TCP; then waits for the end of its input.
fn tcp_before(to: SocketAddr) -> io::Result<String> {
    let mut stream = std::net::TcpStream::connect(to)?;
    println!("ready");
    io::stdout().flush()?;
    io::stdin().read_line(&mut String::new())?;
    stream.write_all(b"late")?;
    io::stdin().read_line(&mut String::new())?;
    Ok(String::new())
}

/// Waits for a datagram, for a moment; gives what is in it.
fn udp_listen(on: SocketAddr) -> io::Result<String> {
    const MOMENT: Duration = Duration::from_millis(700);
    let socket = std::net::UdpSocket::bind(on)?;
    socket.set_read_timeout(Some(MOMENT))?;
    println!("listening");
    io::stdout().flush()?;
    let mut buffer = [0; 64];
    let (length, _) = socket.recv_from(&mut buffer)?;
    Ok(String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned())
}

/// The same as `device`, without the right to take a socket from its device.
fn device_poor(to: SocketAddr, name: &str) -> io::Result<String> {
    nix::unistd::setuid(nix::unistd::Uid::from_raw(65_534))?;
    device(to, name)
}
