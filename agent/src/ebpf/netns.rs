//! Network namespaces other than the agent's: held by descriptor, told apart by the cookie that the kernel side keys by.
//!
//! A held namespace lives for as long as it is held, with no process in it. Entering one is done by a thread that ends
//! there: no other work of the agent's is ever in the wrong place.

use std::fs::File;
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::thread;

use nix::sched::{CloneFlags, setns};

use super::sys;

/// The user namespace that this process is in.
const OWN_USERS: &str = "/proc/self/ns/user";

/// A network namespace, held.
#[derive(Debug)]
pub struct Netns {
    file: OwnedFd,
    cookie: u64,
}

impl Netns {
    /// Holds the namespace behind a descriptor of `/proc/PID/ns/net`. See [`may_enter`] for which to hold.
    ///
    /// # Errors
    /// If it can't be entered; the descriptor comes back.
    pub fn hold(file: OwnedFd) -> Result<Self, (OwnedFd, io::Error)> {
        let mut netns = Self { file, cookie: 0 };
        match netns.inside(own_cookie) {
            Ok(cookie) => netns.cookie = cookie,
            Err(error) => return Err((netns.file, error)),
        }
        Ok(netns)
    }

    /// Holds the namespace that a socket lives in.
    ///
    /// # Errors
    /// If the kernel does not give it (Linux without CONFIG_NET_NS), or it can't be entered.
    pub fn of_socket(socket: BorrowedFd<'_>) -> io::Result<Self> {
        Self::hold(sys::netns_of(socket)?).map_err(|(_file, error)| error)
    }

    /// Whether it belongs to the user namespace of this process: see [`may_enter`].
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn is_own(&self) -> io::Result<bool> {
        may_enter(&self.file)
    }

    /// A duplicate of the descriptor that holds it.
    ///
    /// # Errors
    /// If this process has too many.
    pub fn file(&self) -> io::Result<OwnedFd> {
        self.file.try_clone()
    }

    /// Its inode, which no other has while this one is held.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn inode(&self) -> io::Result<u64> {
        Ok(rustix::fs::fstat(&self.file)?.st_ino)
    }

    /// The kernel's number of it, never given to another until the next boot (SO_NETNS_COOKIE).
    #[must_use]
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// What `make` gives on a thread of its own inside the namespace. Sockets that it makes stay there.
    ///
    /// # Errors
    /// If the namespace can't be entered, or `make` fails.
    pub fn inside<T: Send>(&self, make: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        let file = self.file.as_fd();
        thread::scope(|scope| {
            let worker = thread::Builder::new()
                .name("netns".into())
                .spawn_scoped(scope, move || {
                    setns(file, CloneFlags::CLONE_NEWNET)?;
                    make()
                })?;
            worker
                .join()
                .unwrap_or_else(|_panic| Err(io::Error::other("the thread in the namespace broke off")))
        })
    }
}

impl From<Netns> for OwnedFd {
    fn from(netns: Netns) -> Self {
        netns.file
    }
}

/// The cookie of the calling thread's network namespace.
///
/// # Errors
/// If no socket can be made.
pub fn own_cookie() -> io::Result<u64> {
    let socket = UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    sys::netns_cookie(socket.as_fd())
}

/// The cookie of the network namespace that a socket lives in.
///
/// # Errors
/// If it is no socket.
pub fn cookie_of(socket: BorrowedFd<'_>) -> io::Result<u64> {
    sys::netns_cookie(socket)
}

/// Whether the namespace belongs to the user namespace of this process: who made it had privileges there. Anybody can
/// make one that belongs to a user namespace of his own, as many as he likes, and is root in it.
///
/// # Errors
/// If the kernel does not say.
pub fn may_enter(file: &OwnedFd) -> io::Result<bool> {
    let owner = match sys::owner(file.as_fd()) {
        Ok(owner) => File::from(owner).metadata()?,
        // It belongs to one that this process may not even know of.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => return Ok(false),
        Err(error) => return Err(error),
    };
    let own = std::fs::metadata(OWN_USERS)?;
    Ok((owner.dev(), owner.ino()) == (own.dev(), own.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_namespace_belongs_to_the_own_users_and_keeps_its_cookie() {
        let file: OwnedFd = File::open("/proc/thread-self/ns/net").unwrap().into();
        // In a container the network may belong to a user namespace above.
        if let Ok(Some(user)) = may_enter(&file).map(|may| may.then_some(())) {
            assert_eq!(user, ());
        }
        assert_eq!(own_cookie().unwrap(), own_cookie().unwrap());
    }
}
