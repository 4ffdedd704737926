//! Sockets that a managed process holds but did not make in its workload: told by their mark, and cut off.
//!
//! Programs follow the cgroup that made a socket, so one that was made elsewhere and handed in, or is older than
//! its process's enrolment, is seen by no program of the workload's. SOCK_DESTROY alone would not do: it ends a
//! connection, but the socket can be connected again. So the socket is bound to the loopback device, which takes
//! CAP_NET_RAW to undo, and where a packet may name its own way out (UDP and raw over IPv4, IP_PKTINFO) all it
//! sends is blocked by an IPsec policy of its own, which takes CAP_NET_ADMIN to undo. A listener that the policy lets be
//! reached is left, as is what it accepts; but it could be shut down and connected from its port, so it gets a filter,
//! locked for good, that drops what answers a connect().

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use aya::maps::{Map, MapData, MapError, SkStorage};
use callgate_common::names::SOCKETS;
use callgate_common::origin::present;
use callgate_common::{Origin, Reason, SocketMark};
use socket2::{Domain, Protocol, SockFilter, SockRef, Type};

use super::{Error, Report, sys};

const LOOPBACK: &[u8] = b"lo";

/// What a socket is to the workload of the process that holds it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Standing {
    /// The workload's own, or of a family that stays on the host.
    Own,
    /// Made elsewhere, but it only takes connections, or is one that the policy let in.
    LetIn,
    /// Made elsewhere, and cut off already.
    Harmless,
    /// Made elsewhere.
    Foreign,
}

/// The marks on sockets, read by descriptor.
#[derive(Debug)]
pub struct Marks(SkStorage<MapData, SocketMark>);

impl Marks {
    pub(super) fn new(fd: OwnedFd) -> Result<Self, Error> {
        Self::of(MapData::from_fd(fd))
    }

    pub(super) fn pinned(pin: &Path) -> Result<Self, Error> {
        Self::of(MapData::from_pin(pin))
    }

    fn of(data: Result<MapData, MapError>) -> Result<Self, Error> {
        data.and_then(Map::from_map_data)
            .and_then(SkStorage::try_from)
            .map(Self)
            .map_err(|source| Error::map(SOCKETS, source))
    }

    /// What `socket` is to the workload `number`, which may take connections on the ports `listen`.
    ///
    /// # Errors
    /// If the socket or the map can't be read; nothing is known of the socket then.
    pub fn standing(&self, socket: &impl AsFd, number: u32, listen: &[u16]) -> io::Result<Standing> {
        let known = SockRef::from(socket);
        match i32::from(known.domain()?) {
            libc::AF_INET | libc::AF_INET6 => {}
            libc::AF_UNIX | libc::AF_NETLINK | libc::AF_ALG => return Ok(Standing::Own),
            // Packets, virtual machines, radio: past all programs, whoever made it.
            _ => return Ok(Standing::Foreign),
        }
        match self.0.get(&socket.as_fd().as_raw_fd(), 0) {
            Ok(mark) if mark.workload == number => return Ok(Standing::Own),
            Ok(_) | Err(MapError::KeyNotFound | MapError::ElementNotFound) => {}
            Err(source) => return Err(io::Error::other(source)),
        }
        if known.device()?.is_some_and(|name| name == LOOPBACK) {
            return Ok(Standing::Harmless);
        }
        // Policy lets in nothing but TCP; datagrams go anywhere from an open port.
        let is_tcp = known.protocol()? == Some(Protocol::TCP);
        if is_tcp && (known.is_listener()? || is_peer_let_in(&known, listen)) {
            return Ok(Standing::LetIn);
        }
        Ok(Standing::Foreign)
    }
}

/// A connection that came in on a port that the policy opens: a listener made by systemd accepts such.
fn is_peer_let_in(socket: &SockRef<'_>, listen: &[u16]) -> bool {
    let port = |addr: io::Result<socket2::SockAddr>| addr.ok().and_then(|addr| addr.as_socket());
    port(socket.local_addr()).is_some_and(|local| listen.contains(&local.port()))
        && port(socket.peer_addr()).is_some()
}

/// Ends the socket's connection and keeps it from sending anything to another host, whoever else holds it.
///
/// # Errors
/// If any of that can't be done; the socket may still be of use to its holder then.
pub fn cut_off(socket: &impl AsFd) -> io::Result<()> {
    let known = SockRef::from(socket);
    let family = known.domain()?;
    if !matches!(family, Domain::IPV4 | Domain::IPV6) {
        let number = i32::from(family);
        return Err(io::Error::other(format!(
            "no program sees sockets of family {number}"
        )));
    }
    // Before the device, so that the peer is told.
    disconnect(socket);
    known.bind_device(Some(LOOPBACK))?;
    if family == Domain::IPV4 {
        let blocked = block_output4(socket.as_fd());
        if known.r#type()? != Type::STREAM {
            blocked?;
        }
    }
    // It may have been connected again in between.
    if known.peer_addr().is_ok() {
        known.shutdown(Shutdown::Both).ok();
        disconnect(socket);
    }
    match known.peer_addr() {
        Err(_) => Ok(()),
        Ok(_) => Err(io::Error::other("the socket stays connected")),
    }
}

/// Instructions of a classic filter (include/uapi/linux/filter.h): code, two jumps, operand. A segment with SYN and ACK,
/// the answer to a connect(), is dropped; none comes to a listener or to what it accepted.
const NO_DIALLING: [(u16, u8, u8, u32); 5] = [
    // The flags: byte 13 of the segment.
    (0x30, 0, 0, 13),
    (0x54, 0, 0, SYN_ACK),
    (0x15, 0, 1, SYN_ACK),
    (0x06, 0, 0, 0),
    (0x06, 0, 0, u32::MAX),
];
const SYN_ACK: u32 = 0x12;

/// Sees that a TCP socket completes no connection that it begins itself, whoever holds it. What it accepts inherits that.
///
/// # Errors
/// If it can't be done, as where its holder has locked a filter of its own; the socket may be connected then.
pub fn keep_from_dialling(socket: &impl AsFd) -> io::Result<()> {
    if sys::is_filter_locked(socket.as_fd())? && has_our_filter(socket) {
        return Ok(());
    }
    let filter = NO_DIALLING.map(|(code, then, or, operand)| SockFilter::new(code, then, or, operand));
    SockRef::from(socket).attach_filter(&filter)?;
    sys::lock_filter(socket.as_fd())?;
    if has_our_filter(socket) {
        return Ok(());
    }
    Err(io::Error::other("the socket has another filter"))
}

/// Whether that has been done to a socket; what can't be read counts as not.
#[must_use]
pub fn is_kept_from_dialling(socket: &impl AsFd) -> bool {
    sys::is_filter_locked(socket.as_fd()).unwrap_or(false) && has_our_filter(socket)
}

/// One that can't be read is none of ours.
fn has_our_filter(socket: &impl AsFd) -> bool {
    sys::filter::<{ NO_DIALLING.len() }>(socket.as_fd()).is_ok_and(|found| found == NO_DIALLING)
}

/// The module by which the kernel reads IPsec policies.
pub const MODULE: &str = "xfrm_user";

/// Whether a datagram socket of IPv4 that was handed in could be cut off: the kernel needs a module for that.
///
/// # Errors
/// If it can't be tried.
pub fn can_cut_off() -> io::Result<bool> {
    match sys::block_output4(datagrams()?.as_fd()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(false),
        Err(error) => Err(error),
    }
}

/// The same, for who will cut off: has the module loaded, if the kernel lets this process ask for it.
///
/// # Errors
/// If it can't be tried.
pub fn prepare_to_cut_off() -> io::Result<bool> {
    match block_output4(datagrams()?.as_fd()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(false),
        Err(error) => Err(error),
    }
}

fn datagrams() -> io::Result<socket2::Socket> {
    socket2::Socket::new(Domain::IPV4, Type::DGRAM, None)
}

/// The module that reads the policy is not loaded on a host without IPsec, and only asking for its netlink socket makes the
/// kernel load it.
fn block_output4(socket: BorrowedFd<'_>) -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, netlink, socket_with};
    let refused = match sys::block_output4(socket) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => error,
        other => return other,
    };
    let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
    match socket_with(family, kind, SocketFlags::CLOEXEC, Some(netlink::XFRM)) {
        Ok(_loaded) => sys::block_output4(socket),
        Err(_absent) => Err(refused),
    }
}

/// One that is not connected has nothing to end; what remains connected is noticed by the caller.
fn disconnect(socket: &impl AsFd) {
    rustix::net::connect_unspec(socket).ok();
}

/// Where a socket leads: its peer, else nowhere.
#[must_use]
pub fn peer(socket: &impl AsFd) -> Option<SocketAddr> {
    SockRef::from(socket).peer_addr().ok()?.as_socket()
}

/// A process that held a foreign socket.
#[derive(Clone, Copy, Debug)]
pub struct Holder {
    /// The workload's number.
    pub workload: u32,
    /// Its cgroup.
    pub cgroup: u64,
    /// The process id.
    pub pid: u32,
    /// When it started, ns of CLOCK_BOOTTIME.
    pub start_time: u64,
    /// Its user and group.
    pub ids: (u32, u32),
    /// Its name, up to the first NUL.
    pub comm: [u8; 16],
    /// Device (`st_dev`) and inode of its executable.
    pub exe: Option<(u64, u64)>,
}

impl Report {
    /// That a socket which led to `peer` was cut off.
    #[must_use]
    pub fn handed_socket(holder: &Holder, peer: Option<SocketAddr>, socket: &impl AsFd) -> Self {
        let peer = peer.unwrap_or_else(|| (Ipv4Addr::UNSPECIFIED, 0).into());
        let protocol = SockRef::from(socket).protocol().ok().flatten();
        let origin = Origin {
            workload: holder.workload,
            cgroup_id: holder.cgroup,
            tgid: holder.pid,
            tid: holder.pid,
            start_time: holder.start_time,
            uid: holder.ids.0,
            gid: holder.ids.1,
            dst_addr: match peer.ip() {
                std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                std::net::IpAddr::V6(v6) => v6.octets(),
            },
            dst_port: peer.port(),
            protocol: protocol.map_or(0, |protocol| u8::try_from(i32::from(protocol)).unwrap_or(0)),
            comm: holder.comm,
            present: present::CALLER | present::PID | present::START_TIME,
            ..Origin::EMPTY
        };
        let origin = holder.exe.map_or(origin, |(device, inode)| Origin {
            exe_dev: kernel_dev(device),
            exe_ino: inode,
            present: origin.present | present::EXE,
            ..origin
        });
        Self {
            reason: Reason::HandedSocket,
            origin,
            suppressed: 0,
        }
    }
}

/// The kernel's own form of a device number (include/linux/kdev_t.h, `MKDEV`).
fn kernel_dev(device: u64) -> u32 {
    const MINOR_BITS: u64 = 20;
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    u32::try_from((major << MINOR_BITS) | minor).unwrap_or(u32::MAX)
}
