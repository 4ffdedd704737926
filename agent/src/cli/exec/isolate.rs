//! A view of the file system from which a command can't reach what holds it: cgroups, kernel settings, other
//! programs that would act for it, and the agent's own files.
//!
//! User 0 owns all of these whatever capabilities it lacks, so ownership can't protect them; other programs act for
//! any user. The view is a mount namespace; `confine` takes away everything that could change or leave it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sys::socket::{AddressFamily, SockaddrLike, SockaddrStorage, getsockname};
use nix::sys::stat::{Mode, SFlag, fstat};

use super::Enrolled;
use super::namespaces::{self, Rights};
use super::temporary::{self, Temporary};
use crate::enroll::reach::{CREDENTIAL_STORES, SERVICES, is_roots_alone};

/// File systems through which the kernel takes orders from whoever owns the files.
const KERNELS_OWN: &[&str] = &[
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "efivarfs",
    "pstore",
    "securityfs",
    "sysfs",
    "tracefs",
];
/// The same, below a proc mount. `core_pattern` alone would start any program outside.
const PROC_ORDERS: &[&str] = &["bus", "fs", "irq", "sys", "sysrq-trigger"];
/// Where the credentials are that systemd decrypted for units that run.
const UNIT_CREDENTIALS: &str = "/run/credentials";
/// Options of a file system with nothing in it.
const EMPTY: &str = "mode=0555,size=4k";

/// Moves this process, which must have one thread, into a view of its own. What is `hidden` can't be read there, what
/// is `fixed` can't be changed; neither can another directory be put in the place of one above them.
pub(super) fn isolate(enrolled: &Enrolled, temporary: Temporary) -> anyhow::Result<()> {
    let Enrolled {
        hidden, fixed, over, ..
    } = enrolled;
    let here = std::env::current_dir();
    let rights = namespaces::enter()?;
    // First, since what follows goes by path and has to meet what can be seen.
    if temporary == Temporary::Private {
        temporary::make_private(here.as_deref().ok())?;
    }
    pin_above(hidden.iter().chain(fixed))?;
    for entry in mounts()? {
        if KERNELS_OWN.contains(&entry.kind.as_str()) {
            read_only(&entry.place)?;
        } else if entry.kind == "proc" && rights == Rights::Mounts {
            narrow_proc(&entry)?;
        }
    }
    over.iter().try_for_each(|(path, place)| show_over(path, place))?;
    fixed.iter().try_for_each(|path| fix(path))?;
    hidden.iter().try_for_each(|path| hide(path))?;
    let others = SERVICES.iter().chain(CREDENTIAL_STORES);
    others.map(Path::new).try_for_each(hide)?;
    hide_unit_credentials()?;
    go_back_to(here)
}

/// By its name: a working directory below something hidden would else still lead there.
fn go_back_to(here: io::Result<PathBuf>) -> anyhow::Result<()> {
    let Err(error) = here.and_then(std::env::set_current_dir) else {
        return Ok(());
    };
    super::say(&format!(
        "the working directory can't be seen by the command ({error}), which starts in /"
    ))?;
    std::env::set_current_dir("/").context("can't change the working directory")
}

/// Binds each directory above these paths to itself: what is mounted on can't be renamed or removed, so nobody can
/// put a tree of their own there, for the agent to read at its next start.
fn pin_above<'a>(paths: impl Iterator<Item = &'a PathBuf>) -> anyhow::Result<()> {
    let real = paths.filter_map(|path| fs::canonicalize(path).ok());
    let root = Path::new("/");
    // In order, so that none covers one below it.
    let above: BTreeSet<PathBuf> = real
        .flat_map(|path| {
            let all: Vec<_> = path.ancestors().skip(1).map(Path::to_owned).collect();
            all
        })
        .filter(|path| path != root)
        .collect();
    above.iter().try_for_each(|path| bind(path))
}

/// A proc of the command's own that shows it the processes that it may look into: those of its domain. Files such
/// as `oom_score_adj` would be its own to write by the user alone.
///
/// The kernel lets nobody mount one in a user namespace without a pid namespace, in which the command's pid would be
/// another; what an ordinary user may write there is that user's own.
fn narrow_proc(entry: &Mounted) -> anyhow::Result<()> {
    if entry.root != "/" {
        return read_only(&entry.place);
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    match mount(
        Some("proc"),
        &entry.place,
        Some("proc"),
        flags,
        Some("hidepid=ptraceable"),
    ) {
        Ok(()) => {}
        // Covered by another mount, so out of reach.
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
        Err(errno) => return Err(errno).with_context(|| format!("can't mount {}", entry.place.display())),
    }
    PROC_ORDERS
        .iter()
        .try_for_each(|name| fix(&entry.place.join(name)))
}

/// Covers the credentials of all units but the one that this process was started with, if any.
fn hide_unit_credentials() -> anyhow::Result<()> {
    let all = Path::new(UNIT_CREDENTIALS);
    let own = std::env::var_os("CREDENTIALS_DIRECTORY")
        .and_then(|own| fs::canonicalize(own).ok())
        .filter(|own| own.parent() == Some(all));
    let Some(own) = own else {
        return hide(all);
    };
    let kept =
        open(&own, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).context("the unit's credentials")?;
    let none: Option<&str> = None;
    mount(Some("none"), all, Some("tmpfs"), MsFlags::empty(), Some(EMPTY))
        .context("can't hide credentials")?;
    fs::create_dir(&own).context("can't keep the unit's credentials")?;
    temporary::bind_descriptor(&kept, &own)?;
    mount(
        none,
        all,
        none,
        MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY,
        none,
    )
    .context("can't hide credentials")
}

/// Refuses standard streams that lead around rules and view: network sockets, which were made elsewhere, so that no hook
/// sees them, and directories, from which the host's files are reached as they are.
pub(super) fn refuse_open_ways() -> anyhow::Result<()> {
    refuse_open_way("standard input", &io::stdin())?;
    refuse_open_way("standard output", &io::stdout())?;
    refuse_open_way("standard error", &io::stderr())
}

fn refuse_open_way(name: &str, stream: &impl AsFd) -> anyhow::Result<()> {
    if is_network(stream) {
        bail!("{name} is a network socket, which no rule would hold; put a pipe between");
    }
    if is_directory(stream) {
        bail!("{name} is a directory, by which the command would reach what is to be hidden from it");
    }
    Ok(())
}

fn is_directory(stream: &impl AsFd) -> bool {
    fstat(stream).is_ok_and(|found| found.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits())
}

fn is_network(stream: &impl AsFd) -> bool {
    use std::os::fd::AsRawFd as _;
    match getsockname::<SockaddrStorage>(stream.as_fd().as_raw_fd()) {
        Ok(name) => name.family() != Some(AddressFamily::Unix),
        Err(Errno::ENOTSOCK | Errno::EBADF) => false,
        // A socket that does not even say what it is.
        Err(_) => true,
    }
}

struct Mounted {
    root: String,
    place: PathBuf,
    kind: String,
}

fn mounts() -> anyhow::Result<Vec<Mounted>> {
    let all = procfs::process::Process::myself()?.mountinfo()?;
    let mounted = all.0.into_iter().map(|entry| Mounted {
        root: entry.root,
        place: entry.mount_point,
        kind: entry.fs_type,
    });
    Ok(mounted.collect())
}

/// A mount that another one covers, or that lies where this user may not look, can't be reached, and can't be changed.
fn read_only(place: &Path) -> anyhow::Result<()> {
    let failed = || format!("can't make {} read-only", place.display());
    let kept = match namespaces::kept_flags(place) {
        Ok(kept) => kept,
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES) => return Ok(()),
        Err(errno) => return Err(errno).with_context(failed),
    };
    let none: Option<&str> = None;
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | kept;
    match mount(none, place, none, flags, none) {
        Ok(()) | Err(Errno::ENOENT | Errno::EINVAL | Errno::ENOTDIR) => Ok(()),
        Err(errno) => Err(errno).with_context(failed),
    }
}

/// Keeps a file or a tree from being changed; fine if it isn't there.
fn fix(path: &Path) -> anyhow::Result<()> {
    let Ok(path) = fs::canonicalize(path) else {
        return Ok(());
    };
    bind(&path)?;
    read_only(&path)
}

/// Puts a directory in the place of another, read-only; fine if that isn't there.
fn show_over(path: &Path, place: &Path) -> anyhow::Result<()> {
    let Ok(place) = fs::canonicalize(place) else {
        return Ok(());
    };
    let none: Option<&str> = None;
    mount(Some(path), &place, none, MsFlags::MS_BIND, none)
        .with_context(|| format!("can't put {} over {}", path.display(), place.display()))?;
    read_only(&place)
}

/// Makes a mount of its own of a path that may be a part of one.
fn bind(path: &Path) -> anyhow::Result<()> {
    let none: Option<&str> = None;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(path), path, none, flags, none).with_context(|| format!("can't bind {}", path.display()))
}

/// Covers a directory with an empty one and anything else with `/dev/null`; fine if it isn't there.
///
/// Instead of a file its directory, where that is root's alone.
fn hide(path: &Path) -> anyhow::Result<()> {
    let Ok(mut path) = fs::canonicalize(path) else {
        return Ok(());
    };
    if let Some(parent) = path.parent()
        && path.is_file()
        && is_roots_alone(parent)
    {
        path = parent.to_owned();
    }
    let failed = || format!("can't hide {}", path.display());
    let none: Option<&str> = None;
    if path.is_dir() {
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        return mount(Some("none"), &path, Some("tmpfs"), flags, Some(EMPTY)).with_context(failed);
    }
    File::open("/dev/null").context("there is no /dev/null")?;
    mount(Some("/dev/null"), &path, none, MsFlags::MS_BIND, none).with_context(failed)
}
