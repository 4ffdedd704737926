//! What an earlier run held, as the pins say before anything is loaded.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::fs::DirEntryExt as _;
use std::path::Path;

use aya::maps::{HashMap, Map, MapData, MapError};
use callgate_common::names::WORKLOADS;

use super::loader::LoadOptions;
use super::pins::Pins;
use super::{Programs, cgroup, sys};

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
        Ok(held) if held.iter().all(in_place) => cgroup::level_below(&options.parent),
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

fn held(pin: &Path) -> Result<Vec<u64>, MapError> {
    if !pin.exists() {
        return Ok(Vec::new());
    }
    let map = MapData::from_pin(pin).and_then(Map::from_map_data)?;
    HashMap::<_, u64, u32>::try_from(map)?.keys().collect()
}
