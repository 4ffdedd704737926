//! Links and maps under the pin directory: made, taken over, checked, put back, removed.
//!
//! The agent also holds a descriptor of each link: while it runs, a pin that somebody removes detaches nothing.
//!
//! `DIR/maps/NAME`, `DIR/links/cgroup-ID/PROGRAM` and `DIR/place`, which leads to DIR; directories 0700, since who can remove a pin can open
//! the perimeter.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use callgate_common::names::MAPS;

use super::Error;
use super::bpffs::{self, prepare};
use super::moved::remove_place;
use super::sys::{self, Hook};
use super::unchanged::{Stamp, Unchanged};

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
    entry("cg_setsockopt", Hook::Setsockopt),
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
pub(super) const AGENT: &[Entry] = &[
    entry("ag_egress", Hook::Egress),
    entry("flow_server", Hook::SockOps),
];

/// The pin directory, and what is pinned there.
#[derive(Debug)]
pub(super) struct Pins {
    pub(super) dir: PathBuf,
    /// The same, as the service manager sees it, if that is who started this process, with mounts of its own.
    pub(super) as_host: Option<PathBuf>,
    /// What it is called, wherever `dir` is by now.
    pub(super) place: PathBuf,
    links: BTreeMap<(u64, &'static str), OwnedFd>,
    /// On cgroups of agents before this one: sockets that were made there run their programs for as long as they live.
    former: BTreeMap<(u64, &'static str), OwnedFd>,
    /// Programs whose links were found detached, and made again.
    remade: BTreeSet<&'static str>,
    maps: Vec<(&'static str, OwnedFd)>,
    unchanged: Unchanged,
}

pub(super) const LINKS: &str = "links";
pub(super) const MAPS_DIR: &str = "maps";

/// The same as the service manager sees it; `None` if that is not who started this process.
pub(super) fn as_host(dir: &Path) -> Option<PathBuf> {
    let manager = nix::unistd::getppid().as_raw() == 1;
    let below = dir.strip_prefix("/").ok().filter(|_| manager)?;
    Some(Path::new("/proc/1/root").join(below))
}

impl Pins {
    /// Makes the directory, on a BPF file system of its own if it does not lie on one.
    pub(super) fn open(dir: &Path) -> Result<Self, Error> {
        let pins = Self {
            dir: dir.to_owned(),
            as_host: as_host(dir),
            place: dir.to_owned(),
            links: BTreeMap::new(),
            former: BTreeMap::new(),
            remade: BTreeSet::new(),
            maps: Vec::new(),
            unchanged: Unchanged::default(),
        };
        pins.make_directories()?;
        Ok(pins)
    }

    /// The same for a directory that was taken away.
    pub(super) fn make_directories(&self) -> Result<(), Error> {
        prepare(&self.dir)?;
        make_dir(&self.maps())?;
        make_dir(&self.links())?;
        self.note_place()
    }

    /// The directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where maps are pinned.
    pub(super) fn maps(&self) -> PathBuf {
        self.dir.join(MAPS_DIR)
    }

    fn links(&self) -> PathBuf {
        self.dir.join(LINKS)
    }

    fn links_of(&self, cgroup: u64) -> PathBuf {
        self.links().join(format!("cgroup-{cgroup}"))
    }

    /// Takes hold of the maps, which the loader has pinned.
    pub(super) fn hold_maps(&mut self) -> Result<(), Error> {
        self.maps.clear();
        for name in MAPS {
            let path = self.maps().join(name);
            let map = sys::obj_get(&path).map_err(|source| Error::file("open the map", path, source))?;
            self.maps.push((name, map));
        }
        Ok(())
    }

    /// A map that is held.
    pub(super) fn map(&self, name: &'static str) -> Result<OwnedFd, Error> {
        let held = self.maps.iter().find(|(held, _)| *held == name);
        let (_, map) = held.ok_or(Error::NoSuch { name })?;
        map.try_clone()
            .map_err(|source| Error::file("duplicate the map", name, source))
    }

    /// Which maps are not pinned any more.
    pub(super) fn unpinned_maps(&self) -> impl Iterator<Item = &'static str> {
        let unpinned = |(name, map): &&(&'static str, OwnedFd)| !is_pinned(map, &self.maps().join(name));
        self.maps.iter().filter(unpinned).map(|(name, _)| *name)
    }

    /// Pins all maps again.
    pub(super) fn pin_maps(&self) -> Result<(), Error> {
        for (name, map) in &self.maps {
            let path = self.maps().join(name);
            pin(map, &path).map_err(|source| Error::file("pin the map at", path, source))?;
        }
        Ok(())
    }

    /// Takes hold of the links that an earlier run pinned for a cgroup.
    pub(super) fn hold_links(&mut self, cgroup: u64, entries: &'static [Entry]) {
        let dir = self.links_of(cgroup);
        for entry in entries {
            if let Ok(Some(link)) = attached_at(&dir.join(entry.program), cgroup) {
                self.links.insert((cgroup, entry.program), link);
            }
        }
    }

    /// The numbers of the programs of all links that are pinned below `dir`; none where nothing is.
    pub(super) fn programs(dir: &Path) -> Result<BTreeSet<u32>, Error> {
        let mut programs = BTreeSet::new();
        for cgroup in children(&dir.join(LINKS))? {
            for pin in children(&cgroup)? {
                let info = sys::obj_get(&pin).and_then(|link| sys::link_info(link.as_fd()));
                let info = info.map_err(|source| Error::file("open the link", pin, source))?;
                programs.insert(info.program);
            }
        }
        Ok(programs)
    }

    /// Takes hold of the links on cgroups of former agents: on all that have some and are none of `known`.
    pub(super) fn hold_former(&mut self, known: &BTreeSet<u64>) -> Result<(), Error> {
        for dir in children(&self.links())? {
            let name = dir.file_name().and_then(|name| name.to_str());
            let id = name.and_then(|name| name.strip_prefix("cgroup-")?.parse().ok());
            let Some(id) = id.filter(|id| !known.contains(id)) else {
                continue;
            };
            for entry in AGENT {
                if let Ok(Some(link)) = attached_at(&dir.join(entry.program), id) {
                    self.former.insert((id, entry.program), link);
                }
            }
        }
        Ok(())
    }

    /// Which of those are not pinned any more. One is gone when its cgroup's last socket is.
    pub(super) fn unpinned_former(&self) -> impl Iterator<Item = &'static str> {
        let unpinned = |((id, program), link): &(&(u64, &'static str), &OwnedFd)| {
            is_attached(link, *id) && !is_pinned(link, &self.links_of(*id).join(program))
        };
        self.former
            .iter()
            .filter(unpinned)
            .map(|((_, program), _)| *program)
    }

    /// Pins them again.
    pub(super) fn pin_former(&self) -> Result<(), Error> {
        for ((id, program), link) in &self.former {
            if is_attached(link, *id) {
                let dir = self.links_of(*id);
                make_dir(&dir)?;
                pin(link, &dir.join(program)).map_err(|source| Error::Link {
                    action: "pin",
                    program,
                    source,
                })?;
            }
        }
        Ok(())
    }

    /// The cgroups that links are held of.
    pub(super) fn cgroups(&self) -> BTreeSet<u64> {
        self.links.keys().map(|(cgroup, _)| *cgroup).collect()
    }

    /// Attaches and pins what is not attached or pinned, and replaces the program of what is.
    pub(super) fn attach<'a>(
        &mut self,
        (id, cgroup): (u64, BorrowedFd<'_>),
        entries: &'static [Entry],
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
            let held = self.links.remove(&(id, entry.program));
            if held.as_ref().is_some_and(|link| !is_attached(link, id)) {
                self.remade.insert(entry.program);
            }
            let link = match held.filter(|link| is_attached(link, id)) {
                Some(link) => Some(link),
                None => attached_at(&path, id).map_err(fail("open"))?,
            };
            let link = match link {
                // The kernel goes through all cgroups below to replace a program, also by itself.
                Some(link) if runs(&link, program) => link,
                Some(link) => {
                    sys::link_update(link.as_fd(), program).map_err(fail("replace"))?;
                    link
                }
                None => sys::link_create(program, cgroup, entry.hook).map_err(fail("make"))?,
            };
            pin(&link, &path).map_err(fail("pin"))?;
            self.links.insert((id, entry.program), link);
        }
        Ok(())
    }

    /// The programs of links that were held and found detached when they were to be attached; each is told once.
    pub(super) fn take_remade(&mut self) -> BTreeSet<&'static str> {
        std::mem::take(&mut self.remade)
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

    /// Which of the entries are not attached to the cgroup any more, or not pinned.
    pub(super) fn broken(&self, cgroup: u64, entries: &'static [Entry]) -> Vec<&'static str> {
        let dir = self.links_of(cgroup);
        let stamp = Stamp::of(&dir);
        let all_pinned = self.unchanged.has(cgroup, stamp);
        let intact = |program: &&'static str| {
            let held = self.links.get(&(cgroup, *program));
            held.is_some_and(|link| {
                is_attached(link, cgroup) && (all_pinned || is_pinned(link, &dir.join(program)))
            })
        };
        let programs = entries.iter().map(|entry| entry.program);
        let broken: Vec<_> = programs.filter(|program| !intact(program)).collect();
        self.unchanged.note(cgroup, stamp, broken.is_empty());
        broken
    }

    /// Lets go of one cgroup.
    pub(super) fn detach(&mut self, cgroup: u64) -> Result<(), Error> {
        remove_dir(&self.links_of(cgroup))?;
        self.links.retain(|(held, _), _| *held != cgroup);
        self.unchanged.forget(cgroup);
        Ok(())
    }
}

/// Removes all pins below `dir`, and it, unless it is where the operator mounted a file system: links first, so that
/// nothing runs on maps that are gone. Nothing is captured any more. Fine if there is nothing.
///
/// # Errors
/// If a pin can't be removed.
pub fn remove_pins(dir: &Path) -> Result<(), Error> {
    let links = dir.join(LINKS);
    for cgroup in children(&links)? {
        remove_dir(&cgroup)?;
    }
    for part in [&links, &dir.join(MAPS_DIR)] {
        remove_dir(part)?;
    }
    remove_place(dir)?;
    if bpffs::give_back(dir)? {
        remove_dir(dir)?;
    }
    Ok(())
}

/// Replaces the program of the link pinned at `path`, if there is one whose cgroup is not gone.
fn update(path: &Path, program: BorrowedFd<'_>) -> io::Result<()> {
    let link = match sys::obj_get(path) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    match sys::link_update(link.as_fd(), program) {
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => fs::remove_file(path),
        done => done,
    }
}

fn is_attached(link: &OwnedFd, cgroup: u64) -> bool {
    sys::link_info(link.as_fd()).is_ok_and(|info| info.cgroup == cgroup)
}

/// Whether this very program is what the link runs.
fn runs(link: &OwnedFd, program: BorrowedFd<'_>) -> bool {
    match (sys::link_info(link.as_fd()), sys::object_id(program)) {
        (Ok(info), Ok(id)) => info.program == id,
        _ => false,
    }
}

/// The link pinned at `path`, if there is one and it is attached to the cgroup.
fn attached_at(path: &Path, cgroup: u64) -> io::Result<Option<OwnedFd>> {
    match sys::obj_get(path) {
        Ok(link) => Ok(Some(link).filter(|link| is_attached(link, cgroup))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // Not a link, or not even of a BPF file system: replaced when the new one is pinned.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether this very link or map is what `path` leads to.
fn is_pinned(object: &OwnedFd, path: &Path) -> bool {
    let pinned = sys::obj_get(path).and_then(|pinned| sys::object_id(pinned.as_fd()));
    match (sys::object_id(object.as_fd()), pinned) {
        (Ok(held), Ok(pinned)) => held == pinned,
        _ => false,
    }
}

/// Pins the link or map at `path`, in the place of whatever is there.
pub(super) fn pin(object: &OwnedFd, path: &Path) -> io::Result<()> {
    if is_pinned(object, path) {
        return Ok(());
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    sys::obj_pin(object.as_fd(), path)
}

pub(super) fn make_dir(path: &Path) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| Error::file("make the directory", path, source))
}

pub(super) fn children(dir: &Path) -> Result<Vec<PathBuf>, Error> {
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

pub(super) fn remove_dir(dir: &Path) -> Result<(), Error> {
    for file in children(dir)? {
        fs::remove_file(&file).map_err(|source| Error::file("remove", &file, source))?;
    }
    match fs::remove_dir(dir) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", dir, source)),
        _ => Ok(()),
    }
}
