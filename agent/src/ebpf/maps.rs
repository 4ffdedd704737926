//! The maps that the unprivileged worker uses, from inherited descriptors.
//!
//! Only BPF_OBJ_GET_INFO_BY_FD (once, at the start), BPF_MAP_LOOKUP_ELEM and BPF_MAP_UPDATE_ELEM are called.

use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use aya::maps::{Array, Map, MapData, MapError, SkStorage};
use callgate_common::Origin;
use callgate_common::names::{BEAT_SLOT, LIVENESS, ORIGINS};

use super::Error;

/// Turns an accepted socket into the kernel's facts on its client.
#[derive(Debug)]
pub struct Origins(SkStorage<MapData, Origin>);

impl Origins {
    /// Wraps the descriptor in [`super::WorkerFds::origins`].
    ///
    /// # Errors
    /// If it is no such map.
    pub fn new(fd: OwnedFd) -> Result<Self, Error> {
        let map = open(fd, ORIGINS)?;
        SkStorage::try_from(map)
            .map(Self)
            .map_err(|source| Error::map(ORIGINS, source))
    }

    /// Who connected to this accepted socket; `None` if the kernel programs did not turn that connection, in
    /// which case it must be refused.
    ///
    /// # Errors
    /// If the lookup fails for another reason.
    pub fn of(&self, accepted: &impl AsFd) -> Result<Option<Origin>, Error> {
        match self.0.get(&accepted.as_fd().as_raw_fd(), 0) {
            Ok(origin) => Ok(Some(origin)),
            Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(None),
            Err(source) => Err(Error::map(ORIGINS, source)),
        }
    }
}

/// The word that tells the kernel that somebody serves the listeners.
pub struct Liveness(Array<MapData, u64>);

impl Liveness {
    /// Wraps the descriptor in [`super::WorkerFds::liveness`].
    ///
    /// # Errors
    /// If it is no such map.
    pub fn new(fd: OwnedFd) -> Result<Self, Error> {
        let map = open(fd, LIVENESS)?;
        Array::try_from(map)
            .map(Self)
            .map_err(|source| Error::map(LIVENESS, source))
    }

    /// Says "alive" now. To be called at least every half second; after two seconds of silence connects are
    /// refused.
    ///
    /// # Errors
    /// If the clock or the map can't be used.
    pub fn beat(&mut self) -> Result<(), Error> {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
            .map_err(|errno| Error::file("read", "CLOCK_MONOTONIC", errno.into()))?;
        let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
        let nanos = u64::try_from(now.tv_nsec()).unwrap_or(0);
        let word = seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
        self.0
            .set(BEAT_SLOT, word, 0)
            .map_err(|source| Error::map(LIVENESS, source))
    }
}

fn open(fd: OwnedFd, name: &'static str) -> Result<Map, Error> {
    let data = MapData::from_fd(fd).map_err(|source| Error::map(name, source))?;
    Map::from_map_data(data).map_err(|source| Error::map(name, source))
}
