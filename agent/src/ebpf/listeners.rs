//! Which sockets are the agent's own: without a mark the programs turn nobody round to a port.

use std::os::fd::BorrowedFd;

use aya::maps::SkStorage;
use callgate_common::names::{LISTENER_MARKS, LISTENERS};
use callgate_common::{Listener, ListenerKey, ListenerMark};
use socket2::{SockRef, Type};

use super::workload::{self, table};
use super::{Error, Programs, sys};

impl Programs {
    /// Tells the kernel that this socket is the agent's, for one workload, in the socket's own network
    /// namespace. TCP sockets take the workload's connections, UDP sockets its DNS; the family and port are
    /// read off the socket, which must be bound to 127.0.0.1 or ::1 (and listen, if TCP).
    ///
    /// # Errors
    /// If it is no such socket, or a map can't be written.
    pub fn mark_listener(&mut self, number: u32, socket: BorrowedFd<'_>) -> Result<(), Error> {
        let (kind, address) = describe(socket)?;
        let netns =
            sys::netns_cookie(socket).map_err(|source| Error::file("read", "SO_NETNS_COOKIE", source))?;
        let marks = self
            .ebpf
            .map_mut(LISTENER_MARKS)
            .ok_or(Error::NoSuch { name: LISTENER_MARKS })?;
        let mut marks: SkStorage<_, ListenerMark> = marks
            .try_into()
            .map_err(|source| Error::map(LISTENER_MARKS, source))?;
        marks
            .insert(
                &std::os::fd::AsRawFd::as_raw_fd(&socket),
                ListenerMark { workload: number },
                0,
            )
            .map_err(|source| Error::map(LISTENER_MARKS, source))?;
        let key = ListenerKey {
            netns,
            workload: number,
            pad: 0,
        };
        let mut listeners = table::<ListenerKey, Listener>(&mut self.ebpf, LISTENERS)?;
        let mut ports = listeners.get(&key, 0).unwrap_or_default();
        let port = match (kind == Type::STREAM, address.is_ipv4()) {
            (true, true) => &mut ports.tcp4,
            (true, false) => &mut ports.tcp6,
            (false, true) => &mut ports.dns4,
            (false, false) => &mut ports.dns6,
        };
        *port = address.port();
        listeners
            .insert(key, ports, 0)
            .map_err(|source| Error::map(LISTENERS, source))
    }

    /// Takes a workload's listeners in other network namespaces than these away: what an earlier run left.
    ///
    /// # Errors
    /// If entries can't be removed.
    pub fn unmark_all_but(&mut self, number: u32, spaces: &[u64]) -> Result<(), Error> {
        workload::unlisten(&mut self.ebpf, |key| {
            key.workload == number && !spaces.contains(&key.netns)
        })
    }

    /// Takes a workload's listeners in this network namespace away.
    ///
    /// # Errors
    /// If the entry can't be removed.
    pub fn unmark_listeners(&mut self, number: u32, netns: u64) -> Result<(), Error> {
        workload::unlisten(&mut self.ebpf, |key| key.workload == number && key.netns == netns)
    }

    /// The workload that this socket was marked for, by this run or an earlier one.
    #[must_use]
    pub fn listener_mark(&self, socket: BorrowedFd<'_>) -> Option<u32> {
        let marks: SkStorage<_, ListenerMark> = self.ebpf.map(LISTENER_MARKS)?.try_into().ok()?;
        let mark = marks.get(&std::os::fd::AsRawFd::as_raw_fd(&socket), 0).ok()?;
        Some(mark.workload)
    }
}

fn describe(socket: BorrowedFd<'_>) -> Result<(Type, std::net::SocketAddr), Error> {
    let socket = SockRef::from(&socket);
    let kind = socket
        .r#type()
        .map_err(|source| Error::file("inspect", "the listener", source))?;
    let address = socket
        .local_addr()
        .map_err(|source| Error::file("inspect", "the listener", source))?;
    match address.as_socket() {
        Some(address) if address.ip().is_loopback() && address.port() != 0 => Ok((kind, address)),
        _ => Err(Error::NotAListener),
    }
}
