//! Ways to connect that few programs use.

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, SocketAddrV6};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use socket2::{Domain, MsgHdr, Protocol, SockAddr, Socket, Type};

use super::{PATIENCE, answer, talk, tcp};

/// Connects an IPv6 socket to a mapped address and turns it into an IPv4 one; says what its peer is before and after,
/// and what a connect to elsewhere then comes to.
pub(super) fn addrform(to: SocketAddr) -> io::Result<String> {
    let SocketAddr::V4(v4) = to else {
        return Err(io::Error::other("not IPv4"));
    };
    let mapped = SocketAddr::V6(SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0));
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(&mapped.into())?;
    let peer = |socket: &Socket| -> io::Result<String> {
        let peer = socket.peer_addr()?.as_socket();
        Ok(peer.map_or_else(|| "none".into(), |peer| peer.to_string()))
    };
    let before = peer(&socket)?;
    set(
        &socket,
        libc::IPPROTO_IPV6,
        libc::IPV6_ADDRFORM,
        &libc::AF_INET.to_ne_bytes(),
    )?;
    let after = peer(&socket)?;
    let said = answer(&socket)?;
    super::dissolve(&socket)?;
    Ok(format!(
        "before={before} after={after} {said}|{}",
        talk(&socket, &to.into())?
    ))
}

/// Asks for a route by way of `hop` (a loose source route, or an IPv6 routing header), then connects or sends.
pub(super) fn routed(to: SocketAddr, hop: SocketAddr, kind: Type) -> io::Result<String> {
    let socket = Socket::new(Domain::for_address(to), kind, None)?;
    match hop {
        SocketAddr::V4(hop) => set(
            &socket,
            libc::IPPROTO_IP,
            libc::IP_OPTIONS,
            &source_route(*hop.ip()),
        )?,
        SocketAddr::V6(hop) => set(
            &socket,
            libc::IPPROTO_IPV6,
            libc::IPV6_RTHDR,
            &routing_header(*hop.ip()),
        )?,
    }
    if kind == Type::DGRAM {
        return socket.send_to(b"routed", &to.into()).map(|sent| sent.to_string());
    }
    socket.connect_timeout(&to.into(), Duration::from_millis(300))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    answer(&socket)
}

/// RFC 791 section 3.1: loose source and record route, one hop, then the end of the options.
fn source_route(hop: Ipv4Addr) -> [u8; 8] {
    const LSRR: u8 = 131;
    let [a, b, c, d] = hop.octets();
    [LSRR, 7, 4, a, b, c, d, 0]
}

/// RFC 8754 section 2: segment routing, two segments of which one is left.
fn routing_header(hop: Ipv6Addr) -> Vec<u8> {
    const SEGMENTS: u8 = 4;
    let mut header = vec![0, 4, SEGMENTS, 1, 1, 0, 0, 0];
    header.extend(hop.octets());
    header.extend(hop.octets());
    header
}

#[expect(unsafe_code, reason = "no safe wrapper sets these options")]
fn set(socket: &Socket, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: a buffer of the stated length.
    let answer = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), length) };
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sends as many MiB in large pieces; gives what the other end then says.
pub(super) fn upload(to: SocketAddr, mebibytes: i32) -> io::Result<String> {
    let mut socket = tcp(&to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(&to.into())?;
    let piece = vec![b'x'; 1 << 20];
    for _ in 0..mebibytes {
        socket.write_all(&piece)?;
    }
    socket.shutdown(Shutdown::Write)?;
    answer(&socket)
}

/// Lets the kernel put the first bytes into the SYN, by an option: connect(2) sends nothing then.
pub(super) fn fastopen_connect(to: SocketAddr) -> io::Result<String> {
    let mut socket = tcp(&to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    set(
        &socket,
        libc::IPPROTO_TCP,
        libc::TCP_FASTOPEN_CONNECT,
        &1_i32.to_ne_bytes(),
    )?;
    socket.connect(&to.into())?;
    socket.write_all(b"early")?;
    answer(&socket)
}

pub(super) fn fastopen_sendmsg(to: SocketAddr) -> io::Result<String> {
    let socket = tcp(&to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let address = SockAddr::from(to);
    let early = [io::IoSlice::new(b"early")];
    let message = MsgHdr::new().with_addr(&address).with_buffers(&early);
    socket.sendmsg(&message, libc::MSG_FASTOPEN)?;
    answer(&socket)
}

/// Is connected without a word to the other end, then sends.
pub(super) fn repair(to: SocketAddr) -> io::Result<String> {
    let mut socket = tcp(&to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let repair = |on: i32| set(&socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, &on.to_ne_bytes());
    repair(1)?;
    socket.connect(&to.into())?;
    repair(0)?;
    socket.write_all(b"unannounced")?;
    answer(&socket)
}
