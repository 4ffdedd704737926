//! What `exec` gives up before it becomes the command: descriptors, privileges, ways around the hooks.
//!
//! The cgroup's hooks see INET sockets alone. Packet, XDP and VM sockets pass them by, and so does a socket
//! or connection that came in as a descriptor.

use std::ffi::CString;

use anyhow::{Context, anyhow};
use caps::{CapSet, Capability};
use landlock::{
    AccessFs, CompatLevel, Compatible as _, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetStatus, Scope,
};
use nix::unistd::{Gid, Uid};

use crate::enroll::reach::KEPT;

/// A user of the host, with all that a login would set.
#[derive(Debug)]
pub(super) struct User {
    name: CString,
    uid: Uid,
    gid: Gid,
    home: String,
    shell: String,
}

impl User {
    /// By name or number.
    pub(super) fn find(text: &str) -> anyhow::Result<Self> {
        let by_name = nix::unistd::User::from_name(text).context("can't read the user database")?;
        let found = match (by_name, text.parse::<u32>()) {
            (Some(user), _) => Some(user),
            (None, Ok(uid)) => {
                nix::unistd::User::from_uid(Uid::from_raw(uid)).context("can't read the user database")?
            }
            (None, Err(_)) => None,
        };
        let user = found.ok_or_else(|| anyhow!("there is no user {text:?} on this host"))?;
        Ok(Self {
            name: CString::new(user.name).context("the user's name holds a NUL byte")?,
            uid: user.uid,
            gid: user.gid,
            home: user.dir.to_string_lossy().into_owned(),
            shell: user.shell.to_string_lossy().into_owned(),
        })
    }

    /// Groups first: afterwards there is no right to change them.
    pub(super) fn become_it(&self) -> anyhow::Result<()> {
        let hint = "only root can run a command as another user";
        nix::unistd::initgroups(&self.name, self.gid).context(hint)?;
        nix::unistd::setresgid(self.gid, self.gid, self.gid).context(hint)?;
        nix::unistd::setresuid(self.uid, self.uid, self.uid).context(hint)?;
        Ok(())
    }

    pub(super) fn env(&self) -> [(&'static str, String); 4] {
        let name = self.name.to_string_lossy().into_owned();
        [
            ("HOME", self.home.clone()),
            ("LOGNAME", name.clone()),
            ("SHELL", self.shell.clone()),
            ("USER", name),
        ]
    }
}

/// Closes everything but standard input, output and error. Call it right before exec: descriptors that the
/// program's own objects stand for are closed too.
pub(super) fn close_descriptors() -> anyhow::Result<()> {
    let mut open = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let number = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok());
        open.extend(number.filter(|number| *number > 2));
    }
    for number in open {
        match nix::unistd::close(number) {
            // The directory's own descriptor was in the list and is closed by now.
            Ok(()) | Err(nix::errno::Errno::EBADF) => {}
            Err(errno) => return Err(errno).with_context(|| format!("descriptor {number}")),
        }
    }
    Ok(())
}

/// Gives up capabilities and the way back to them, and lets the kernel refuse sockets that no hook sees.
pub(super) fn confine() -> anyhow::Result<()> {
    give_up_capabilities().context("can't give up capabilities")?;
    nix::sys::prctl::set_no_new_privs().context("can't set no_new_privs")?;
    enter_domain().context("the kernel has no usable Landlock (Linux 5.19, `landlock` in its lsm= list)")?;
    super::calls::restrict(nix::unistd::geteuid().is_root())
}

/// An ordinary user's command has none, whatever its user namespace gave this process.
fn give_up_capabilities() -> anyhow::Result<()> {
    let kept = if nix::unistd::geteuid().is_root() {
        KEPT
    } else {
        &[]
    };
    caps::clear(None, CapSet::Ambient)?;
    let may_change_bounds = caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)?;
    for capability in caps::all().iter().filter(|one| !kept.contains(one)) {
        if may_change_bounds && caps::has_cap(None, CapSet::Bounding, *capability)? {
            caps::drop(None, CapSet::Bounding, *capability)?;
        }
    }
    for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        let mut held = caps::read(None, set)?;
        held.retain(|capability| kept.contains(capability));
        caps::set(None, set, &held)?;
    }
    Ok(())
}

/// A Landlock domain of the command's own: a process in it can't look into or steer one that is not (ptrace,
/// `/proc/PID/root`, `/proc/PID/mem`, pidfd_getfd), whoever owns that, and can't change mounts. From Linux 6.12
/// on it can't signal one either, nor connect to its abstract sockets.
///
/// A domain must deny something: it is making block devices. Renaming between directories has to be allowed in
/// so many words.
fn enter_domain() -> anyhow::Result<()> {
    let entered = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::MakeBlock | AccessFs::Refer)?
        .set_compatibility(CompatLevel::BestEffort)
        .scope(Scope::Signal | Scope::AbstractUnixSocket)?
        .create()?
        .add_rule(PathBeneath::new(PathFd::new("/")?, AccessFs::Refer))?
        .restrict_self()?;
    if entered.ruleset == RulesetStatus::NotEnforced {
        return Err(anyhow!("the domain is not enforced"));
    }
    Ok(())
}
