//! The sockets that serve a workload: made here or taken over from the last run, handed to workers as duplicates.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use socket2::{Domain, SockRef, Socket, Type};

use super::{Capture, Error};
use crate::channel::ListenerInfo;
use crate::channel::supervisor::{Sender, WorkerGone};
use crate::ebpf::Programs;
use crate::identity::WorkloadName;
use crate::supervisor::io;

/// Connections that wait to be accepted; while a worker is replaced they wait here.
const BACKLOG: i32 = 4096;

/// A socket that a worker serves for one workload.
pub(in crate::supervisor) enum Offer {
    /// Connections.
    Connections(ListenerInfo, TcpListener),
    /// Questions about names.
    Names(ListenerInfo, UdpSocket),
}

impl Offer {
    /// Hands it over.
    pub(in crate::supervisor) fn to(self, worker: &Sender) -> Result<(), WorkerGone> {
        match self {
            Self::Connections(info, socket) => worker.listener(info, socket),
            Self::Names(info, socket) => worker.names(info, socket),
        }
    }
}

/// The sockets that serve one workload in one network namespace.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    /// For connections.
    pub(super) listeners: Vec<(SocketAddr, TcpListener)>,
    /// For questions about names, on each address that has a listener.
    pub(super) names: Vec<(SocketAddr, UdpSocket)>,
}

impl Sockets {
    /// One of each kind for IPv4 and for IPv6, where the network namespace of the calling thread has it; the ports are
    /// the kernel's choice.
    ///
    /// # Errors
    /// If there is no IPv4, or the loopback device is down.
    pub(super) fn make() -> std::io::Result<Self> {
        let mut all = Self::default();
        for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            let listener = match listen((ip, 0).into()) {
                Ok(listener) => TcpListener::from(listener),
                Err(error) if ip.is_ipv6() => {
                    tracing::warn!(%error, "no listener on ::1: IPv6 connects of workloads are refused");
                    continue;
                }
                Err(error) => return Err(error),
            };
            let names = UdpSocket::bind((ip, 0))?;
            all.listeners.push((listener.local_addr()?, listener));
            all.names.push((names.local_addr()?, names));
        }
        Ok(all)
    }

    /// Those of them that there are, taken back under the parts' names.
    ///
    /// # Errors
    /// If one is no bound socket.
    pub(super) fn of(parts: impl IntoIterator<Item = (Part, OwnedFd)>) -> std::io::Result<Self> {
        let mut all = Self::default();
        for (part, socket) in parts {
            if part.is_listener() {
                let listener = TcpListener::from(socket);
                all.listeners.push((listener.local_addr()?, listener));
            } else {
                let names = UdpSocket::from(socket);
                all.names.push((names.local_addr()?, names));
            }
        }
        Ok(all)
    }

    /// Whether each address has both, as IPv4 must.
    pub(super) fn is_whole(&self) -> bool {
        let there: Vec<Part> = self.parts().map(|(part, _)| part).collect();
        let has = |part| there.iter().filter(|one| **one == part).count() == 1;
        has(Part::Tcp4) && has(Part::Dns4) && has(Part::Tcp6) == has(Part::Dns6)
    }

    /// Which parts these are.
    pub(super) fn parts(&self) -> impl Iterator<Item = (Part, BorrowedFd<'_>)> {
        let of = |addr: &SocketAddr, v4, v6| if addr.is_ipv4() { v4 } else { v6 };
        let listeners = self.listeners.iter();
        let listeners =
            listeners.map(move |(addr, socket)| (of(addr, Part::Tcp4, Part::Tcp6), socket.as_fd()));
        let names = self.names.iter();
        listeners.chain(names.map(move |(addr, socket)| (of(addr, Part::Dns4, Part::Dns6), socket.as_fd())))
    }

    /// Tells the kernel side that these are ours.
    ///
    /// # Errors
    /// If its maps can't be written.
    pub(super) fn mark(&self, programs: &mut Programs, number: u32) -> Result<(), Error> {
        for (_, listener) in &self.listeners {
            programs.mark_listener(number, listener.as_fd())?;
        }
        for (_, socket) in &self.names {
            programs.mark_listener(number, socket.as_fd())?;
        }
        Ok(())
    }

    /// Duplicates for a worker.
    pub(super) fn offers(&self, name: &WorkloadName, number: u32, netns: u64) -> Result<Vec<Offer>, Error> {
        let info = |addr: SocketAddr| ListenerInfo {
            workload: name.clone(),
            number,
            addr,
            netns,
        };
        let failed = || io("duplicate", Path::new("a socket"));
        let mut all = Vec::new();
        for (addr, listener) in &self.listeners {
            let listener = listener.try_clone().map_err(failed())?;
            all.push(Offer::Connections(info(*addr), listener));
        }
        for (addr, socket) in &self.names {
            let socket = socket.try_clone().map_err(failed())?;
            all.push(Offer::Names(info(*addr), socket));
        }
        Ok(all)
    }
}

/// One of a workload's sockets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Part {
    /// Connections over IPv4.
    Tcp4,
    /// Connections over IPv6.
    Tcp6,
    /// Names, asked over IPv4.
    Dns4,
    /// Names, asked over IPv6.
    Dns6,
}

impl Part {
    /// All of them.
    pub(super) const ALL: [Self; 4] = [Self::Tcp4, Self::Tcp6, Self::Dns4, Self::Dns6];

    /// The part in names.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Tcp4 => "tcp4",
            Self::Tcp6 => "tcp6",
            Self::Dns4 => "dns4",
            Self::Dns6 => "dns6",
        }
    }

    /// What the service manager calls it in the agent's own network namespace.
    fn name(self, workload: &WorkloadName) -> String {
        format!("callgate-{workload}-{part}", part = self.word())
    }

    /// What it calls it in another one, by that one's cookie. No workload's name has such a sign.
    pub(super) fn name_in(self, workload: &WorkloadName, netns: u64) -> String {
        format!("callgate-{workload}-{part}@{netns}", part = self.word())
    }

    fn ip(self) -> IpAddr {
        match self {
            Self::Tcp4 | Self::Dns4 => Ipv4Addr::LOCALHOST.into(),
            Self::Tcp6 | Self::Dns6 => Ipv6Addr::LOCALHOST.into(),
        }
    }

    fn is_listener(self) -> bool {
        matches!(self, Self::Tcp4 | Self::Tcp6)
    }

    /// Whether a socket can be this part.
    pub(super) fn fits(self, socket: &OwnedFd) -> std::io::Result<bool> {
        let socket = SockRef::from(socket);
        let kind = if self.is_listener() {
            Type::STREAM
        } else {
            Type::DGRAM
        };
        let bound = socket.local_addr()?.as_socket();
        Ok(socket.r#type()? == kind
            && socket.is_listener()? == self.is_listener()
            && bound.is_some_and(|bound| bound.ip() == self.ip() && bound.port() != 0))
    }
}

impl Capture {
    /// A workload's sockets, marked: one listener and one for names on each loopback address that the host has. Those of
    /// the last run if it left them, with the connections that wait at them; else new ones, the ports of which are the
    /// kernel's choice.
    pub(super) fn sockets(&mut self, name: &WorkloadName, number: u32) -> Result<Sockets, Error> {
        let mut all = Sockets::default();
        for (tcp, dns) in [(Part::Tcp4, Part::Dns4), (Part::Tcp6, Part::Dns6)] {
            let listener = match self.socket(name, number, tcp, || listen((tcp.ip(), 0).into())) {
                Ok(listener) => TcpListener::from(listener?),
                Err(source) if tcp == Part::Tcp6 => {
                    tracing::warn!(error = %source, "no listener on ::1: IPv6 connects of workloads are refused");
                    continue;
                }
                Err(source) => return Err(io("listen on", Path::new("127.0.0.1"))(source)),
            };
            let bind = || UdpSocket::bind((dns.ip(), 0)).map(OwnedFd::from);
            let names = self.socket(name, number, dns, bind);
            let names = UdpSocket::from(names.map_err(io("bind", Path::new("a UDP socket")))??);
            let address =
                |found: std::io::Result<SocketAddr>| found.map_err(io("inspect", Path::new("a socket")));
            all.listeners.push((address(listener.local_addr())?, listener));
            all.names.push((address(names.local_addr())?, names));
        }
        Ok(all)
    }

    /// The next run finds none of a workload that was let go.
    pub(super) fn forget_sockets(&mut self, workload: &WorkloadName) {
        for part in Part::ALL {
            self.store.forget(&part.name(workload));
        }
    }

    /// The last run's socket or a new one, marked and kept for the next run. The outer error is the new one's.
    fn socket(
        &mut self,
        workload: &WorkloadName,
        number: u32,
        part: Part,
        make: impl FnOnce() -> std::io::Result<OwnedFd>,
    ) -> std::io::Result<Result<OwnedFd, Error>> {
        let name = part.name(workload);
        let left = self.left(&name, number, part);
        let is_new = left.is_none();
        let socket = left.map_or_else(make, Ok)?;
        if let Err(error) = self.programs.mark_listener(number, socket.as_fd()) {
            return Ok(Err(error.into()));
        }
        if is_new {
            self.store.keep(&name, socket.as_fd());
        }
        Ok(Ok(socket))
    }

    /// What the last run left for this part, if it is that: connections that wait at a socket with another mark were
    /// turned round for another workload.
    fn left(&mut self, name: &str, number: u32, part: Part) -> Option<OwnedFd> {
        let socket = self.store.take(name)?;
        let marked = self.programs.listener_mark(socket.as_fd());
        if marked == Some(number) && part.fits(&socket).unwrap_or(false) {
            return Some(socket);
        }
        tracing::warn!(
            name,
            ?marked,
            number,
            "a socket of the last run is not what it was; another is made"
        );
        drop(socket);
        self.store.forget(name);
        None
    }
}

fn listen(addr: SocketAddr) -> std::io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
