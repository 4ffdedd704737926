//! Descriptors that outlive this process in the service manager (sd_notify(3), `FDSTORE=1`).
//!
//! The manager hands them to the next run as `LISTEN_FDS`, however this one ends; it lets go of them when the unit is
//! stopped and nothing is to start it again.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd, RawFd};

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use sd_notify::NotifyState;

/// How many descriptors the manager keeps for this unit. systemd sets it from version 254 on, the unit file for those
/// before.
const ROOM: &str = "FDSTORE";
const SOCKET: &str = "NOTIFY_SOCKET";
/// Bytes that all names may take, with one more each: they come to the next run as one variable (`LISTEN_FDNAMES`), and with
/// one of 128 KiB no process can be started (include/uapi/linux/binfmts.h, MAX_ARG_STRLEN).
const NAMES: usize = 120 << 10;

/// What the manager keeps for the next run, and what it kept for this one.
#[derive(Debug)]
pub struct Store {
    room: usize,
    /// How many descriptors the manager keeps, by name.
    stored: BTreeMap<String, usize>,
    complete: bool,
    left: BTreeMap<String, Vec<OwnedFd>>,
}

/// Room in the store.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Room {
    /// Descriptors.
    pub descriptors: usize,
    /// Bytes of their names.
    pub bytes: usize,
}

/// For what belongs to no party.
const COMMON: Room = Room {
    descriptors: 4,
    bytes: 256,
};

impl Room {
    /// What is left of it beside this; `None` if that is too much.
    #[must_use]
    pub fn beside(self, used: Self) -> Option<Self> {
        Some(Self {
            descriptors: self.descriptors.checked_sub(used.descriptors)?,
            bytes: self.bytes.checked_sub(used.bytes)?,
        })
    }

    /// What one descriptor under each of these names takes.
    #[must_use]
    pub fn of<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        names.into_iter().fold(Self::default(), |sum, name| Self {
            descriptors: sum.descriptors + 1,
            bytes: sum.bytes + bytes_of(name),
        })
    }
}

impl Store {
    /// Takes back what the last run left. To be called once, before anything else may have closed a descriptor or
    /// started a process: the manager passes them without the close-on-exec flag.
    #[must_use]
    pub fn open() -> Self {
        let room = std::env::var(ROOM).ok().and_then(|room| room.parse().ok());
        let room = room.filter(|_| std::env::var_os(SOCKET).is_some()).unwrap_or(0);
        let left = inherited().unwrap_or_else(|error| {
            tracing::warn!(%error, "what the last run left with the service manager can't be taken back");
            BTreeMap::new()
        });
        Self {
            room,
            stored: left.iter().map(|(name, all)| (name.clone(), all.len())).collect(),
            complete: room > 0,
            left,
        }
    }

    /// Names of what the last run left and nobody has taken.
    pub fn left(&self) -> impl Iterator<Item = &str> {
        self.left.keys().map(String::as_str)
    }

    /// How much of the room each of so many parties may use without taking another's. Something is left for what is
    /// nobody's.
    #[must_use]
    pub fn share(&self, parties: usize) -> Room {
        let parties = parties.max(1);
        Room {
            descriptors: self.room.saturating_sub(COMMON.descriptors) / parties,
            bytes: (NAMES - COMMON.bytes) / parties,
        }
    }

    /// What is kept under the names that `which` picks takes this much room.
    #[must_use]
    pub fn used(&self, which: impl Fn(&str) -> bool) -> Room {
        let picked = self.stored.iter().filter(|(name, _)| which(name));
        picked.fold(Room::default(), |mut used, (name, count)| {
            used.descriptors += count;
            used.bytes += count * bytes_of(name);
            used
        })
    }

    /// Whether the manager keeps something under this name.
    #[must_use]
    pub fn keeps(&self, name: &str) -> bool {
        self.stored.contains_key(name)
    }

    /// Whether all that was to be kept is: the next run goes on with it.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// What the last run left under this name; the manager keeps it still.
    pub fn take(&mut self, name: &str) -> Option<OwnedFd> {
        let all = self.left.get_mut(name)?;
        let one = all.pop();
        if all.is_empty() {
            self.left.remove(name);
        }
        one
    }

    /// Gives a descriptor to the manager. Nothing is lost if that fails but its survival.
    pub fn keep(&mut self, name: &str, descriptor: BorrowedFd<'_>) {
        if self.room == 0 {
            return;
        }
        let used = self.used(|_| true);
        if used.descriptors >= self.room || used.bytes + bytes_of(name) > NAMES {
            tracing::warn!(
                name,
                room = self.room,
                "the service manager keeps no more sockets (FileDescriptorStoreMax=, or the length of their names): connections are refused while the agent restarts"
            );
            self.complete = false;
            return;
        }
        // A socket that reports an error is still the one to be served.
        let states = [
            NotifyState::FdStore,
            NotifyState::FdName(name),
            NotifyState::Custom("FDPOLL=0"),
        ];
        match sd_notify::notify_with_fds(&states, &[descriptor]) {
            Ok(()) => *self.stored.entry(name.to_owned()).or_default() += 1,
            Err(error) => {
                tracing::warn!(%error, name, "the service manager can't be given a socket to keep");
                self.complete = false;
            }
        }
    }

    /// Has the manager let go of what it keeps under this name.
    pub fn forget(&mut self, name: &str) {
        if self.room == 0 {
            return;
        }
        super::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
        self.stored.remove(name);
    }

    /// Closes what nobody has taken.
    pub fn forget_rest(&mut self) {
        for (name, descriptors) in std::mem::take(&mut self.left) {
            tracing::info!(
                name,
                "the last run left a socket that nothing needs now; it is closed"
            );
            drop(descriptors);
            self.forget(&name);
        }
    }
}

/// A name and what parts it from the next.
fn bytes_of(name: &str) -> usize {
    name.len() + 1
}

/// What was passed to this process, by name.
fn inherited() -> io::Result<BTreeMap<String, Vec<OwnedFd>>> {
    let mut all = BTreeMap::<String, Vec<OwnedFd>>::new();
    let passed = sd_notify::listen_fds_with_names()?;
    if passed.len() == 0 {
        return Ok(all);
    }
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    for (number, name) in passed {
        all.entry(name).or_default().push(owned(own.as_fd(), number)?);
    }
    Ok(all)
}

/// An owned descriptor in the place of a number. The kernel's way to take a copy of another process's descriptor works
/// on one's own too.
fn owned(own: BorrowedFd<'_>, number: RawFd) -> io::Result<OwnedFd> {
    let owned = pidfd_getfd(own, number, PidfdGetfdFlags::empty())?;
    nix::unistd::close(number)?;
    Ok(owned)
}
