//! What the worker gives up before it reads its first byte.
//!
//! In order: descriptors that it should not have inherited, core files, every capability (bounding set first,
//! while it still may), its user and groups, new privileges, tracing by others, and most system calls
//! ([`seccomp`]). All of it before the first thread starts, so no thread can have been missed. The channel to the
//! supervisor comes as standard input: no descriptor number has to be agreed on, and the standard library's
//! close-on-exec keeps all others out.

pub mod seccomp;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use caps::CapSet;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, close, dup2_stdin, setgroups, setresgid, setresuid};

/// The unprivileged user that the worker runs as.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Unprivileged {
    /// User id, not 0.
    pub uid: u32,
    /// Group id, not 0.
    pub gid: u32,
}

/// A step of the confinement failed; the worker must not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The step and the kernel's reason.
    #[error("can't confine the worker: {step}: {source}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// From the kernel.
        source: io::Error,
    },
    /// A capability set could not be emptied.
    #[error("can't confine the worker: dropping capabilities: {source}")]
    Capabilities {
        /// From the kernel.
        source: caps::errors::CapsError,
    },
    /// The filter could not be built or installed.
    #[error("can't confine the worker: {source} (the kernel needs CONFIG_SECCOMP_FILTER)")]
    Seccomp {
        /// From the filter compiler or the kernel.
        #[from]
        source: seccomp::Error,
    },
    /// Asked to run the worker as root.
    #[error("the worker must not run as user or group 0; set worker_user to an unprivileged user")]
    Root,
    /// Something started a thread before.
    #[error("can't confine the worker: {count} threads run already, and not all steps would reach them")]
    Threads {
        /// How many.
        count: usize,
    },
    /// After all steps, something is still there.
    #[error("the confinement did not take: {what}")]
    NotConfined {
        /// What was found.
        what: &'static str,
    },
}

fn step<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> Error {
    move |source| Error::Step {
        step,
        source: source.into(),
    }
}

/// Takes the channel from standard input and leaves `/dev/null` there.
///
/// # Errors
/// If the process is out of descriptors or has no `/dev/null`.
pub fn take_channel() -> Result<OwnedFd, Error> {
    let channel = io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(step("taking the channel"))?;
    let null = File::open("/dev/null").map_err(step("opening /dev/null"))?;
    dup2_stdin(&null).map_err(step("replacing standard input"))?;
    Ok(channel)
}

/// No core files and no reading of this process's memory by others of its user. For both processes: the
/// supervisor holds the CA's key and every secret.
///
/// # Errors
/// If the kernel refuses.
pub fn keep_memory_private() -> Result<(), Error> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(step("setting RLIMIT_CORE to 0"))?;
    prctl::set_dumpable(false).map_err(step("making the process undumpable"))
}

/// Gives everything up, for good. `keep` is the channel; it and the standard streams stay open.
///
/// # Errors
/// After an error the process is in an undefined state of privilege and has to exit.
pub fn enter(user: Unprivileged, keep: &OwnedFd) -> Result<(), Error> {
    if user.uid == 0 || user.gid == 0 {
        return Err(Error::Root);
    }
    alone()?;
    confine(user, keep)
}

fn confine(user: Unprivileged, keep: &OwnedFd) -> Result<(), Error> {
    close_others(keep.as_raw_fd())?;
    take_random()?;
    drop_bounding_set()?;
    become_user(user)?;
    clear_capabilities()?;
    prctl::set_no_new_privs().map_err(step("setting no_new_privs"))?;
    keep_memory_private()?;
    take_all_descriptors()?;
    verify(user)?;
    seccomp::install()?;
    Ok(())
}

/// A statically linked program can't look up at run time whether its C library has getrandom(3): random numbers then come from
/// `/dev/urandom`, which the first call opens for good. Later nothing can be opened.
fn take_random() -> Result<(), Error> {
    getrandom::fill(&mut [0]).map_err(step("asking for a random byte"))
}

/// Connections are descriptors: a worker that runs out of them has none for any workload. Whoever starts the agent by
/// hand has a soft limit for programs that use select(2).
fn take_all_descriptors() -> Result<(), Error> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).map_err(step("reading RLIMIT_NOFILE"))?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).map_err(step("raising RLIMIT_NOFILE"))
}

fn alone() -> Result<(), Error> {
    let count = std::fs::read_dir("/proc/self/task")
        .map_err(step("counting threads"))?
        .count();
    if count == 1 {
        Ok(())
    } else {
        Err(Error::Threads { count })
    }
}

/// The supervisor opens everything close-on-exec; this catches what its own parent left open.
fn close_others(keep: RawFd) -> Result<(), Error> {
    let listing = std::fs::read_dir("/proc/self/fd").map_err(step("listing descriptors"))?;
    let open: Vec<RawFd> = listing
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for fd in open {
        if fd > 2 && fd != keep {
            // The listing's own descriptor is among them and closed by now.
            match close(fd) {
                Ok(()) | Err(nix::errno::Errno::EBADF) => {}
                Err(errno) => return Err(step("closing an inherited descriptor")(errno)),
            }
        }
    }
    Ok(())
}

fn drop_bounding_set() -> Result<(), Error> {
    for set in [CapSet::Bounding, CapSet::Ambient] {
        caps::clear(None, set).map_err(|source| Error::Capabilities { source })?;
    }
    Ok(())
}

fn become_user(user: Unprivileged) -> Result<(), Error> {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    setgroups(&[]).map_err(step("leaving all groups"))?;
    setresgid(gid, gid, gid).map_err(step("changing the group"))?;
    setresuid(uid, uid, uid).map_err(step("changing the user"))
}

fn clear_capabilities() -> Result<(), Error> {
    for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        caps::clear(None, set).map_err(|source| Error::Capabilities { source })?;
    }
    Ok(())
}

/// Reads back what matters; a step that "worked" without effect must not go unnoticed.
fn verify(user: Unprivileged) -> Result<(), Error> {
    for set in [
        CapSet::Effective,
        CapSet::Permitted,
        CapSet::Inheritable,
        CapSet::Bounding,
    ] {
        let left = caps::read(None, set).map_err(|source| Error::Capabilities { source })?;
        if !left.is_empty() {
            return Err(Error::NotConfined {
                what: "a capability is left",
            });
        }
    }
    if setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).is_ok()
        || Uid::effective().as_raw() != user.uid
    {
        return Err(Error::NotConfined {
            what: "the user can be changed back",
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
