//! The sockets that serve a workload: made here, handed to workers as duplicates.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;

use socket2::{Domain, Socket, Type};

use super::{Error, Held};
use crate::channel::ListenerInfo;
use crate::channel::supervisor::{Sender, WorkerGone};
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

pub(super) fn offers(name: &WorkloadName, held: &Held) -> Result<Vec<Offer>, Error> {
    let info = |addr: SocketAddr| ListenerInfo {
        workload: name.clone(),
        number: held.number,
        addr,
    };
    let failed = || io("duplicate", Path::new("a socket"));
    let mut all = Vec::new();
    for (addr, listener) in &held.listeners {
        all.push(Offer::Connections(
            info(*addr),
            listener.try_clone().map_err(failed())?,
        ));
    }
    for (addr, socket) in &held.names {
        all.push(Offer::Names(info(*addr), socket.try_clone().map_err(failed())?));
    }
    Ok(all)
}

/// A socket for names on each address that has a listener.
pub(super) fn names(listeners: &[(SocketAddr, TcpListener)]) -> Result<Vec<(SocketAddr, UdpSocket)>, Error> {
    let bind = |ip| {
        let socket = UdpSocket::bind((ip, 0))?;
        Ok((socket.local_addr()?, socket))
    };
    listeners
        .iter()
        .map(|(addr, _)| bind(addr.ip()).map_err(io("bind", Path::new("a UDP socket"))))
        .collect()
}

/// One listener for IPv4 and one for IPv6, where the host has it; the ports are the kernel's choice.
pub(super) fn listeners() -> Result<Vec<(SocketAddr, TcpListener)>, Error> {
    let v4 = listen((Ipv4Addr::LOCALHOST, 0).into()).map_err(io("listen on", Path::new("127.0.0.1")))?;
    let mut all = vec![v4];
    match listen((Ipv6Addr::LOCALHOST, 0).into()) {
        Ok(v6) => all.push(v6),
        Err(error) => tracing::warn!(%error, "no listener on ::1: IPv6 connects of workloads are refused"),
    }
    Ok(all)
}

fn listen(addr: SocketAddr) -> std::io::Result<(SocketAddr, TcpListener)> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    let listener = TcpListener::from(socket);
    Ok((listener.local_addr()?, listener))
}
