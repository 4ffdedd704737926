//! What is held, as the pins say: for who loads nothing, or not yet.

use std::collections::{self, HashSet};
use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::fs::DirEntryExt as _;
use std::path::Path;

use aya::maps::{HashMap, Map, MapData, MapError};
use callgate_common::DialKey;
use callgate_common::names::{LISTEN_PORTS, SOCKETS, WORKLOADS};

use super::loader::LoadOptions;
use super::pins::{MAPS_DIR, Pins};
use super::{Error, Marks, Programs, cgroup, loader, sys};

/// What is held, whether or not an agent runs.
#[derive(Debug)]
pub struct Pinned {
    /// The numbers of the workloads by their cgroups' ids.
    pub numbers: collections::HashMap<u64, u32>,
    /// The marks on their sockets.
    pub marks: Marks,
    listen: collections::HashMap<u32, Vec<u16>>,
}

impl Pinned {
    /// The TCP ports on which the workload of this number may take connections.
    #[must_use]
    pub fn listen(&self, number: u32) -> &[u16] {
        self.listen.get(&number).map_or(&[], Vec::as_slice)
    }
}

/// Looks at the pins below `bpffs_dir`; `None` if there are none.
///
/// # Errors
/// If they can't be looked at or opened, as by another than root, or an agent of another version made them.
pub fn pinned(bpffs_dir: &Path) -> Result<Option<Pinned>, Error> {
    let maps = bpffs_dir.join(MAPS_DIR);
    let [workloads, sockets, listen] = [WORKLOADS, SOCKETS, LISTEN_PORTS].map(|name| maps.join(name));
    for pin in [&workloads, &sockets, &listen] {
        let there = pin.try_exists();
        if !there.map_err(|source| Error::file("examine", pin, source))? {
            return Ok(None);
        }
    }
    loader::check_version(&maps)?;
    let numbers = held(&workloads).map_err(|source| Error::map(WORKLOADS, source))?;
    Ok(Some(Pinned {
        numbers: numbers.into_iter().collect(),
        marks: Marks::pinned(&sockets)?,
        listen: listening(&listen).map_err(|source| Error::map(LISTEN_PORTS, source))?,
    }))
}

fn listening(pin: &Path) -> Result<collections::HashMap<u32, Vec<u16>>, MapError> {
    let map = MapData::from_pin(pin).and_then(Map::from_map_data)?;
    let mut ports = collections::HashMap::<_, Vec<_>>::new();
    for key in HashMap::<_, DialKey, u8>::try_from(map)?.keys() {
        let key = key?;
        ports.entry(key.workload).or_default().push(key.port);
    }
    Ok(ports)
}

impl Programs {
    /// Whether there is a cgroup of this id still; what can't be told counts as there.
    #[must_use]
    pub fn exists(&self, cgroup: u64) -> bool {
        exists(&self.mount, cgroup)
    }
}

/// The level that workload cgroups lie on; 0, which means to search, if one that is held lies elsewhere: looked for on the
/// wrong level only, it would not be one.
pub(super) fn workload_level(options: &LoadOptions, mount: &File, pins: &Pins) -> u32 {
    let children = children(&options.mount.join(&options.parent));
    let in_place = |id: &u64| children.contains(id) || !exists(mount, *id);
    match held(&pins.maps().join(WORKLOADS)) {
        Ok(held) if held.iter().all(|(id, _)| in_place(id)) => cgroup::level_below(&options.parent),
        _ => 0,
    }
}

fn exists(mount: &File, cgroup: u64) -> bool {
    sys::cgroup_exists(mount.as_fd(), cgroup).unwrap_or(true)
}

fn children(parent: &Path) -> HashSet<u64> {
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    entries.map(|entry| entry.ino()).collect()
}

fn held(pin: &Path) -> Result<Vec<(u64, u32)>, MapError> {
    if !pin.exists() {
        return Ok(Vec::new());
    }
    let map = MapData::from_pin(pin).and_then(Map::from_map_data)?;
    HashMap::<_, u64, u32>::try_from(map)?.iter().collect()
}
