//! `/tmp` and `/var/tmp` of the command's own: what was there when it started can be used as before, but for sockets,
//! and what it or others put there later is seen by that side alone.
//!
//! Terminals, editors, display servers and key agents have their sockets there, and run commands for whoever connects
//! as the same user. Nothing but the look of a path keeps a process from a socket, so they must not have one.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use anyhow::Context as _;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, fstat};

use super::namespaces::kept_flags;

/// Whose directories for temporary files a command sees.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Temporary {
    /// The host's.
    Shared,
    /// Its own.
    Private,
}

const DIRECTORIES: &[&str] = &["/tmp", "/var/tmp"];
/// More entries than this are left out.
const MOST: usize = 8192;
/// Names of directories that get sockets as programs start; one may be empty now.
const FOR_SOCKETS: &[&str] = &[
    ".ICE-unix",
    ".X11-unix",
    "emacs",
    "pulse-",
    "screen",
    "ssh-",
    "systemd-private-",
    "tmux-",
    "vscode-",
];

/// Call it in a mount namespace of one's own. The entry that the working directory `here` lies in stays in any case.
pub(super) fn make_private(here: Option<&Path>) -> anyhow::Result<()> {
    for directory in DIRECTORIES {
        // Where it is a link, the real one.
        let Ok(real) = fs::canonicalize(directory) else {
            continue;
        };
        let needed = here
            .and_then(|here| here.strip_prefix(&real).ok())
            .and_then(|rest| rest.iter().next());
        cover(&real, needed).with_context(|| format!("can't make a {directory} for the command"))?;
    }
    Ok(())
}

fn cover(directory: &Path, needed: Option<&OsStr>) -> anyhow::Result<()> {
    let covered = open(directory, look().union(OFlag::O_DIRECTORY), Mode::empty())?;
    let names = names(directory)?;
    if names.len() > MOST {
        let left_out = names.len() - MOST;
        writeln!(
            io::stderr().lock(),
            "callgate exec: {left_out} entries of {} are not seen by the command; --shared-tmp shows all",
            directory.display()
        )?;
    }
    // Where the host lets nothing run from it (noexec), nothing runs from this one.
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | kept_flags(directory)?;
    mount(Some("none"), directory, Some("tmpfs"), flags, Some("mode=1777"))?;
    // The entry that is needed, whatever its place in the list.
    let rest = names
        .iter()
        .map(AsRef::as_ref)
        .filter(|name| Some(*name) != needed);
    for name in needed.into_iter().chain(rest).take(MOST) {
        let target = directory.join(name);
        show(&covered, name, &target, Some(name) == needed)
            .with_context(|| format!("can't show {} in it", target.display()))?;
    }
    Ok(())
}

/// Where a user may add files but not list those of others (mode 1733), none is there to be shown.
fn names(directory: &Path) -> io::Result<Vec<OsString>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| Ok(entry?.file_name())).collect(),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Lets one entry of the covered directory be seen, unless it is or holds a socket, is gone, or can't be looked at: a
/// FUSE file system (an AppImage's) answers nobody but its user, root neither.
fn show(covered: &OwnedFd, name: &OsStr, target: &Path, needed: bool) -> anyhow::Result<()> {
    let Ok(entry) = openat(covered, name, look(), Mode::empty()) else {
        return Ok(());
    };
    let Ok(found) = fstat(&entry) else {
        return Ok(());
    };
    match SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFSOCK => Ok(()),
        SFlag::S_IFLNK => {
            let to = readlinkat(&entry, "")?;
            Ok(std::os::unix::fs::symlink(to, target)?)
        }
        SFlag::S_IFDIR if !needed && leads_to_sockets(&entry, name) => Ok(()),
        SFlag::S_IFDIR => {
            fs::create_dir(target)?;
            bind_unless_gone(&entry, target, |path| fs::remove_dir(path))
        }
        _ => {
            fs::write(target, b"")?;
            bind_unless_gone(&entry, target, |path| fs::remove_file(path))
        }
    }
}

/// What others remove from a directory for all meanwhile (ENOENT, fs/namespace.c) is not there for the command either.
fn bind_unless_gone(
    entry: &OwnedFd,
    target: &Path,
    unmake: fn(&Path) -> io::Result<()>,
) -> anyhow::Result<()> {
    match bind_descriptor(entry, target) {
        Err(error) if error.downcast_ref() == Some(&Errno::ENOENT) => Ok(unmake(target)?),
        done => done,
    }
}

/// By its name, or by what is in it. One that can't be read is taken for one.
fn leads_to_sockets(directory: &OwnedFd, name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    let known = |start: &&str| name.starts_with(start.as_bytes());
    let is_socket = |entry: io::Result<fs::DirEntry>| {
        entry.is_ok_and(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()))
    };
    FOR_SOCKETS.iter().any(known)
        || fs::read_dir(path_of(directory)).map_or(true, |mut entries| entries.any(is_socket))
}

/// Mounts what a descriptor of this mount namespace stands for.
pub(super) fn bind_descriptor(source: &impl AsFd, target: &Path) -> anyhow::Result<()> {
    let none: Option<&str> = None;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(path_of(source).as_str()), target, none, flags, none)
        .with_context(|| format!("can't bind {}", target.display()))
}

fn path_of(descriptor: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd())
}

fn look() -> OFlag {
    OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}
