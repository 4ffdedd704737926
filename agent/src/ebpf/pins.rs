//! Links and maps under the pin directory: made, taken over, checked, removed.
//!
//! `DIR/maps/NAME` and `DIR/links/cgroup-ID/PROGRAM`; directories 0700, since who can remove a pin can open
//! the perimeter.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::Error;
use super::sys::{self, Hook};

/// One program and where it hooks in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// The program's name in the object.
    pub(super) program: &'static str,
    /// Its hook.
    pub(super) hook: Hook,
}

const fn entry(program: &'static str, hook: Hook) -> Entry {
    Entry { program, hook }
}

/// On each workload's cgroup. The perimeter first: what is attached so far only ever refuses more.
pub(super) const WORKLOAD: &[Entry] = &[
    entry("cg_egress", Hook::Egress),
    entry("cg_ingress", Hook::Ingress),
    entry("flow_client", Hook::SockOps),
    entry("cg_peername4", Hook::Peername4),
    entry("cg_peername6", Hook::Peername6),
    entry("cg_recvmsg4", Hook::Recvmsg4),
    entry("cg_recvmsg6", Hook::Recvmsg6),
    entry("cg_sendmsg4", Hook::Sendmsg4),
    entry("cg_sendmsg6", Hook::Sendmsg6),
    entry("cg_connect4", Hook::Connect4),
    entry("cg_connect6", Hook::Connect6),
    entry("cg_create", Hook::SockCreate),
];

/// On the workloads' parent.
pub(super) const GUARD: &[Entry] = &[
    entry("gd_connect4", Hook::Connect4),
    entry("gd_connect6", Hook::Connect6),
    entry("gd_sendmsg4", Hook::Sendmsg4),
    entry("gd_sendmsg6", Hook::Sendmsg6),
];

/// On the agent's own cgroup.
pub(super) const AGENT: &[Entry] = &[entry("flow_server", Hook::SockOps)];

/// The pin directory.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    dir: PathBuf,
}

/// Where distributions mount one for all. Below it nothing can be made before: it lies on sysfs.
const STANDARD: &str = "/sys/fs/bpf";

fn mount_if_none(dir: &Path) -> Result<(), Error> {
    let system = statfs(dir).map_err(|errno| Error::file("inspect", dir, errno.into()))?;
    if system.filesystem_type() == BPF_FS_MAGIC {
        return Ok(());
    }
    mount(
        Some("bpf"),
        dir,
        Some("bpf"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        Some("mode=0700"),
    )
    .map_err(|errno| Error::file("mount a BPF file system on", dir, errno.into()))
}

impl Pins {
    /// Makes the directory, on a BPF file system of its own if it does not lie on one.
    pub(super) fn open(dir: &Path) -> Result<Self, Error> {
        let pins = Self { dir: dir.to_owned() };
        if dir.starts_with(STANDARD) {
            mount_if_none(Path::new(STANDARD))?;
        }
        make_dir(dir)?;
        mount_if_none(dir)?;
        make_dir(&pins.maps())?;
        make_dir(&pins.links())?;
        Ok(pins)
    }

    /// Where maps are pinned.
    pub(super) fn maps(&self) -> PathBuf {
        self.dir.join("maps")
    }

    fn links(&self) -> PathBuf {
        self.dir.join("links")
    }

    fn links_of(&self, cgroup: u64) -> PathBuf {
        self.links().join(format!("cgroup-{cgroup}"))
    }

    /// Attaches and pins what is not attached yet, and replaces the program of what is.
    pub(super) fn attach<'a>(
        &self,
        (id, cgroup): (u64, BorrowedFd<'_>),
        entries: &[Entry],
        program: impl Fn(&'static str) -> Result<BorrowedFd<'a>, Error>,
    ) -> Result<(), Error> {
        let dir = self.links_of(id);
        make_dir(&dir)?;
        for entry in entries {
            let fail = |action| {
                move |source| Error::Link {
                    action,
                    program: entry.program,
                    source,
                }
            };
            let path = dir.join(entry.program);
            let program = program(entry.program)?;
            if update(&path, program).map_err(fail("replace"))? {
                continue;
            }
            let link = sys::link_create(program, cgroup, entry.hook).map_err(fail("make"))?;
            sys::obj_pin(link.as_fd(), &path).map_err(fail("pin"))?;
        }
        Ok(())
    }

    /// Gives every pinned link the program of the same name; links of cgroups that are gone are removed.
    pub(super) fn take_over<'a>(
        &self,
        program: impl Fn(&'static str) -> Result<BorrowedFd<'a>, Error>,
    ) -> Result<(), Error> {
        for dir in children(&self.links())? {
            for entry in WORKLOAD.iter().chain(GUARD).chain(AGENT) {
                update(&dir.join(entry.program), program(entry.program)?).map_err(|source| Error::Link {
                    action: "replace",
                    program: entry.program,
                    source,
                })?;
            }
        }
        Ok(())
    }

    /// Whether each of the entries is pinned and still attached to the cgroup.
    pub(super) fn are_intact(&self, cgroup: u64, entries: &[Entry]) -> bool {
        let dir = self.links_of(cgroup);
        entries.iter().all(|entry| {
            sys::obj_get(&dir.join(entry.program))
                .and_then(|link| sys::link_info(link.as_fd()))
                .is_ok_and(|info| info.cgroup == cgroup)
        })
    }

    /// Lets go of one cgroup.
    pub(super) fn detach(&self, cgroup: u64) -> Result<(), Error> {
        remove_dir(&self.links_of(cgroup))
    }

    /// Removes all pins: links first, so that nothing runs on maps that are gone.
    pub(super) fn remove(&self) -> Result<(), Error> {
        for dir in children(&self.links())? {
            remove_dir(&dir)?;
        }
        for part in [self.links(), self.maps()] {
            remove_dir(&part)?;
        }
        Ok(())
    }
}

/// Replaces the program of the link pinned at `path`; false if there is none or its cgroup is gone.
fn update(path: &Path, program: BorrowedFd<'_>) -> io::Result<bool> {
    let link = match sys::obj_get(path) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match sys::link_update(link.as_fd(), program) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => fs::remove_file(path).map(|()| false),
        Err(error) => Err(error),
    }
}

fn make_dir(path: &Path) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| Error::file("make the directory", path, source))
}

fn children(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(Error::file("list", dir, source)),
    };
    entries
        .map(|entry| {
            entry
                .map(|entry| entry.path())
                .map_err(|source| Error::file("list", dir, source))
        })
        .collect()
}

fn remove_dir(dir: &Path) -> Result<(), Error> {
    for file in children(dir)? {
        fs::remove_file(&file).map_err(|source| Error::file("remove", &file, source))?;
    }
    match fs::remove_dir(dir) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", dir, source)),
        _ => Ok(()),
    }
}
