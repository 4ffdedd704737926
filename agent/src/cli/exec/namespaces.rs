//! The namespaces that a command's view of the file system is made in.
//!
//! Who may mount makes a mount namespace. An ordinary user may in a user namespace alone: in it the command has the
//! ids that it has outside, and files of all other users look like nobody's (user_namespaces(7)).

use std::fs;
use std::path::Path;

use anyhow::{Context, anyhow, bail};
use caps::{CapSet, Capability};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{getegid, geteuid};

/// What to do where an ordinary user can't make one.
pub(in crate::cli) const FIX: &str = "allow them (user.max_user_namespaces, user.max_mnt_namespaces, \
    kernel.unprivileged_userns_clone, for AppArmor a profile for callgate with `userns`, a container's filter of system \
    calls), or have root start the commands with --user";

/// What a mount may forbid. Of the times of use the kernel keeps what is set (do_mount in fs/namespace.c).
const KEPT_FLAGS: &[(FsFlags, MsFlags)] = &[
    (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
    (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
    (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
];

/// By whose rights the view is made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Rights {
    /// Those over the host's mounts.
    Mounts,
    /// Those that an ordinary user has in a user namespace.
    UserNamespace,
}

/// Moves this process, which must have one thread, into namespaces of its own, from which no mount gets out.
pub(super) fn enter() -> anyhow::Result<Rights> {
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_ADMIN)? {
        unshare(CloneFlags::CLONE_NEWNS).context("can't make a mount namespace")?;
        keep_mounts_private()?;
        return Ok(Rights::Mounts);
    }
    if geteuid().is_root() {
        bail!("without CAP_SYS_ADMIN a command can't be kept from root's files; run it as another user");
    }
    enter_as_user().map_err(|error| {
        anyhow!("{error:#}; a command of an ordinary user is kept from the host's services in one: {FIX}")
    })?;
    Ok(Rights::UserNamespace)
}

/// As [`enter`], by a user that may not mount otherwise.
pub(in crate::cli) fn enter_as_user() -> anyhow::Result<()> {
    let (user, group) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).context("can't make a user namespace")?;
    // Without it the kernel takes no groups from who has no right to them. Groups that the user has stay. Where user
    // namespaces come without rights (AppArmor), this is refused.
    map("setgroups", "deny")?;
    map("uid_map", &format!("{user} {user} 1"))?;
    map("gid_map", &format!("{group} {group} 1"))?;
    keep_mounts_private()
}

fn map(file: &str, text: &str) -> anyhow::Result<()> {
    fs::write(format!("/proc/self/{file}"), text)
        .with_context(|| format!("can't write the user namespace's {file}"))
}

fn keep_mounts_private() -> anyhow::Result<()> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("can't make the mounts private")
}

/// What the host forbids on the mount that this lies on. To leave one out when it is mounted anew asks for its end, which
/// is refused where it comes from outside (mount_namespaces(7)).
pub(super) fn kept_flags(place: &Path) -> nix::Result<MsFlags> {
    let found = statvfs(place)?.flags();
    let kept = KEPT_FLAGS
        .iter()
        .filter(|(found_as, _)| found.contains(*found_as));
    Ok(kept.map(|(_, flag)| *flag).collect())
}
