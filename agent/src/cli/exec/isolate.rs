//! A view of the file system from which a command can't reach what holds it: cgroups, kernel settings, other
//! programs that would act for it, and the agent's own files.
//!
//! User 0 owns all of these whatever capabilities it lacks, so ownership can't protect them. The view is a
//! mount namespace; `confine` takes away everything that could change or leave it. Making one needs
//! CAP_SYS_ADMIN: a command that an ordinary user starts has none, and owns none of these.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use caps::{CapSet, Capability};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockaddrLike, SockaddrStorage, getsockname};

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
/// Services that start processes or resolve names for whoever asks, outside of every workload.
const SERVICES: &[&str] = &[
    "/run/avahi-daemon/socket",
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/dbus/system_bus_socket",
    "/run/docker.sock",
    "/run/nscd/socket",
    "/run/podman/podman.sock",
    "/run/snapd.socket",
    "/run/systemd/private",
    "/run/systemd/resolve/io.systemd.Resolve",
    "/run/user",
];

/// Moves this process, which must have one thread, into a view of its own. `hidden` can't be read there,
/// `fixed` can't be changed.
pub(super) fn isolate(hidden: &[PathBuf], fixed: &[PathBuf]) -> anyhow::Result<()> {
    if !caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_ADMIN)? {
        if nix::unistd::geteuid().is_root() {
            bail!("without CAP_SYS_ADMIN a command can't be kept from root's files; run it as another user");
        }
        return Ok(());
    }
    let here = std::env::current_dir();
    unshare(CloneFlags::CLONE_NEWNS).context("can't make a mount namespace")?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("can't make the mounts private")?;
    for entry in mounts()? {
        if KERNELS_OWN.contains(&entry.kind.as_str()) {
            read_only(&entry.place, entry.flags)?;
        } else if entry.kind == "proc" {
            for name in PROC_ORDERS {
                fix(&entry.place.join(name))?;
            }
        }
    }
    fixed.iter().try_for_each(|path| fix(path))?;
    hidden.iter().try_for_each(|path| hide(path))?;
    SERVICES.iter().try_for_each(|path| hide(Path::new(path)))?;
    // Else a working directory below something hidden would still lead there.
    std::env::set_current_dir(here.unwrap_or_else(|_gone| "/".into()))
        .or_else(|_hidden| std::env::set_current_dir("/"))
        .context("can't change the working directory")
}

/// Refuses standard streams that are network sockets: made elsewhere, they are seen by no hook.
pub(super) fn refuse_network_streams() -> anyhow::Result<()> {
    let streams = [
        ("standard input", is_network(&io::stdin())),
        ("standard output", is_network(&io::stdout())),
        ("standard error", is_network(&io::stderr())),
    ];
    for (name, network) in streams {
        if network {
            bail!("{name} is a network socket, which no rule would hold; put a pipe between");
        }
    }
    Ok(())
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
    place: PathBuf,
    kind: String,
    flags: MsFlags,
}

fn mounts() -> anyhow::Result<Vec<Mounted>> {
    let all = procfs::process::Process::myself()?.mountinfo()?;
    let mounted = all.0.into_iter().map(|entry| {
        let mut flags = MsFlags::empty();
        for (name, flag) in [
            ("nosuid", MsFlags::MS_NOSUID),
            ("nodev", MsFlags::MS_NODEV),
            ("noexec", MsFlags::MS_NOEXEC),
        ] {
            flags.set(flag, entry.mount_options.contains_key(name));
        }
        Mounted {
            place: entry.mount_point,
            kind: entry.fs_type,
            flags,
        }
    });
    Ok(mounted.collect())
}

/// A mount that another one covers can't be reached, and can't be changed.
fn read_only(place: &Path, kept: MsFlags) -> anyhow::Result<()> {
    let none: Option<&str> = None;
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | kept;
    match mount(none, place, none, flags, none) {
        Ok(()) | Err(Errno::ENOENT | Errno::EINVAL | Errno::ENOTDIR) => Ok(()),
        Err(errno) => Err(errno).with_context(|| format!("can't make {} read-only", place.display())),
    }
}

/// Keeps a file or a tree from being changed; fine if it isn't there.
fn fix(path: &Path) -> anyhow::Result<()> {
    let Ok(path) = fs::canonicalize(path) else {
        return Ok(());
    };
    let none: Option<&str> = None;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(path.as_path()), &path, none, flags, none)
        .with_context(|| format!("can't bind {}", path.display()))?;
    read_only(&path, MsFlags::empty())
}

/// Covers a directory with an empty one and anything else with `/dev/null`; fine if it isn't there.
///
/// A file that is replaced by a rename comes to light again: so where only root may enter its directory, that
/// is covered instead.
fn hide(path: &Path) -> anyhow::Result<()> {
    let Ok(mut path) = fs::canonicalize(path) else {
        return Ok(());
    };
    if let Some(parent) = path.parent()
        && path.is_file()
        && fs::metadata(parent).is_ok_and(|meta| meta.uid() == 0 && meta.mode() & 0o077 == 0)
        && parent != Path::new("/root")
    {
        path = parent.to_owned();
    }
    let failed = || format!("can't hide {}", path.display());
    let none: Option<&str> = None;
    if path.is_dir() {
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        return mount(
            Some("none"),
            &path,
            Some("tmpfs"),
            flags,
            Some("mode=0555,size=4k"),
        )
        .with_context(failed);
    }
    File::open("/dev/null").context("there is no /dev/null")?;
    mount(Some("/dev/null"), &path, none, MsFlags::MS_BIND, none).with_context(failed)
}
