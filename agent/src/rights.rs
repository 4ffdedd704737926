//! The supervisor's own user and capabilities, and what it hands on to the processes that it starts.
//!
//! Under `callgate.service` it is no root: it begins as root and goes on as a user of its own, so that its children have no
//! right but what is handed to them. Ambient capabilities from the service manager would be every child's.

use std::io;

use caps::{CapSet, Capability};
use nix::sys::prctl;
use nix::unistd::{Gid, Uid, User, getegid, geteuid, setfsgid, setfsuid, setgroups, setresgid, setresuid};

/// What a process needs that gives everything up and becomes another user.
pub const TO_BECOME_ANOTHER: &[Capability] = &[
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
    Capability::CAP_SETPCAP,
];
/// What else it needs to enter a network namespace before.
pub const TO_ENTER_NAMESPACES: Capability = Capability::CAP_SYS_ADMIN;
/// What a credential helper needs to read what only root may.
pub const TO_READ_SECRETS: &[Capability] = &[Capability::CAP_DAC_READ_SEARCH];

/// Why the user can't be changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name is nobody's.
    #[error("there is no user {name:?} to run as")]
    NoUser {
        /// The name.
        name: String,
    },
    /// It is root's.
    #[error("{name} is root: leave --user out to run as root")]
    Root {
        /// The name.
        name: String,
    },
    /// The kernel refused.
    #[error("can't go on as another user: {step}: {source}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// From the kernel.
        source: io::Error,
    },
}

fn step<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> Error {
    move |source| Error::Step {
        step,
        source: source.into(),
    }
}

/// Goes on as this user, in its group alone, with the capabilities that the process has. For root, before the first thread.
///
/// # Errors
/// If there is no such user, or the kernel refuses; the process must end then.
pub fn go_on_as(name: &str) -> Result<(), Error> {
    let found = User::from_name(name).ok().flatten();
    let user = found.ok_or_else(|| Error::NoUser {
        name: name.to_owned(),
    })?;
    if user.uid.is_root() || user.gid.as_raw() == 0 {
        return Err(Error::Root {
            name: name.to_owned(),
        });
    }
    prctl::set_keepcaps(true).map_err(step("keeping capabilities"))?;
    become_user(user.uid, user.gid)?;
    prctl::set_keepcaps(false).map_err(step("keeping capabilities no longer"))?;
    let held = caps::read(None, CapSet::Permitted).map_err(capabilities)?;
    caps::set(None, CapSet::Effective, &held).map_err(capabilities)
}

fn become_user(uid: Uid, gid: Gid) -> Result<(), Error> {
    setgroups(&[]).map_err(step("leaving all groups"))?;
    setresgid(gid, gid, gid).map_err(step("changing the group"))?;
    setresuid(uid, uid, uid).map_err(step("changing the user"))
}

fn capabilities(error: caps::errors::CapsError) -> Error {
    step("setting capabilities")(io::Error::other(error))
}

/// Runs `start`, and has the process that it starts get these capabilities. One of root's gets them anyway.
///
/// # Errors
/// If the kernel refuses, or `start` fails.
pub fn hand_on<T>(handed: &[Capability], start: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    if geteuid().is_root() {
        return start();
    }
    // Of this thread alone; processes that others start meanwhile get nothing.
    let kept = caps::read(None, CapSet::Inheritable).map_err(io::Error::other)?;
    let mut wider = kept.clone();
    wider.extend(handed);
    caps::set(None, CapSet::Inheritable, &wider).map_err(io::Error::other)?;
    let raised = handed
        .iter()
        .try_for_each(|one| caps::raise(None, CapSet::Ambient, *one));
    let started = raised.map_err(io::Error::other).and_then(|()| start());
    // Taking the inheritable ones away takes the ambient ones with them.
    caps::set(None, CapSet::Inheritable, &kept).map_err(io::Error::other)?;
    started
}

/// Runs `make`, and what it makes is root's: cgroups, whose owner could move processes about in them.
///
/// # Errors
/// If the kernel refuses, or `make` fails.
pub fn as_root<T>(make: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let (uid, gid) = (geteuid(), getegid());
    if uid.is_root() {
        return make();
    }
    let held = caps::read(None, CapSet::Effective).map_err(io::Error::other)?;
    // Of this thread alone, as the C library has it.
    setfsgid(Gid::from_raw(0));
    setfsuid(Uid::from_raw(0));
    let made = make();
    setfsuid(uid);
    setfsgid(gid);
    // The kernel takes those away that are about files when the user of file accesses is root no more (capabilities(7)).
    caps::set(None, CapSet::Effective, &held).map_err(io::Error::other)?;
    made
}
