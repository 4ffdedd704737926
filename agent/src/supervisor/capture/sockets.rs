//! The sockets that serve a workload: made here, handed to workers as duplicates.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::Path;

use socket2::{Domain, Socket, Type};

use super::Error;
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
#[derive(Debug)]
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
        let mut listeners = vec![listen((Ipv4Addr::LOCALHOST, 0).into())?];
        match listen((Ipv6Addr::LOCALHOST, 0).into()) {
            Ok(v6) => listeners.push(v6),
            Err(error) => {
                tracing::warn!(%error, "no listener on ::1: IPv6 connects of workloads are refused");
            }
        }
        let bind = |ip| {
            let socket = UdpSocket::bind((ip, 0))?;
            Ok((socket.local_addr()?, socket))
        };
        let names = listeners.iter().map(|(addr, _)| bind(addr.ip()));
        let names = names.collect::<std::io::Result<_>>()?;
        Ok(Self { listeners, names })
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

fn listen(addr: SocketAddr) -> std::io::Result<(SocketAddr, TcpListener)> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    let listener = TcpListener::from(socket);
    Ok((listener.local_addr()?, listener))
}
