//! New cgroups in workloads: whoever starts a container or a unit makes its cgroup first, and its process is in its network
//! namespace before the program begins. inotify(7) tells of the cgroup, so that looks come often just then.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};

use super::orders::Orders;
use super::{DEEPEST, Place};
use crate::identity::unit::EXEC_PREFIX;

/// Cgroups of one workload that are watched; what is made below further ones waits for the usual look.
const MOST: usize = 256;

/// The cgroups of all workloads, and those below them.
#[derive(Clone)]
pub(super) struct Nursery(Arc<Shared>);

struct Shared {
    inotify: Inotify,
    watched: Mutex<HashMap<WatchDescriptor, (u32, PathBuf)>>,
}

impl Nursery {
    /// Starts the thread that listens; each new cgroup makes the looks into its workload restless.
    ///
    /// # Errors
    /// If there is no room for an inotify instance (`fs.inotify.max_user_instances`) or a thread.
    pub(super) fn start(orders: Orders) -> std::io::Result<Self> {
        let nursery = Self(Arc::new(Shared {
            inotify: Inotify::init(InitFlags::IN_CLOEXEC)?,
            watched: Mutex::default(),
        }));
        let shared = nursery.clone();
        std::thread::Builder::new()
            .name("new-cgroups".into())
            .spawn(move || shared.listen(&orders))?;
        Ok(nursery)
    }

    /// Watches the cgroups of these workloads, and no others'.
    pub(super) fn hold(&self, places: &[Place]) {
        // The kernel forgets the others' watches with their cgroups.
        self.lock()
            .retain(|_, (number, _)| places.iter().any(|place| place.number == *number));
        for place in places {
            self.add(place.number, &place.directory, DEEPEST);
        }
    }

    fn add(&self, number: u32, directory: &Path, levels: usize) {
        let mut watched = self.lock();
        if watched.values().filter(|(of, _)| *of == number).count() >= MOST {
            return;
        }
        let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_ONLYDIR;
        // One that is gone already, or over the system's limit, waits for the usual look.
        let Ok(watch) = self.0.inotify.add_watch(directory, flags) else {
            return;
        };
        watched.insert(watch, (number, directory.to_owned()));
        drop(watched);
        let Some(levels) = levels.checked_sub(1) else {
            return;
        };
        // Made before they could be told of.
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !is_command(&entry.file_name()) {
                self.add(number, &entry.path(), levels);
            }
        }
    }

    fn listen(&self, orders: &Orders) {
        loop {
            let events = match self.0.inotify.read_events() {
                Ok(events) => events,
                Err(Errno::EINTR) => continue,
                Err(error) => {
                    tracing::warn!(%error, "the kernel tells of new cgroups no more: containers are served half a second later");
                    return;
                }
            };
            for number in events.into_iter().filter_map(|event| self.take(event)) {
                orders.give(|asked| {
                    asked.restless.insert(number);
                });
            }
        }
    }

    /// The workload that has a new cgroup.
    fn take(&self, event: InotifyEvent) -> Option<u32> {
        if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            self.lock().remove(&event.wd);
            return None;
        }
        let name = event.name?;
        if !event.mask.contains(AddWatchFlags::IN_ISDIR) || is_command(&name) {
            return None;
        }
        let (number, above) = self.lock().get(&event.wd).cloned()?;
        self.add(number, &above.join(name), DEEPEST);
        Some(number)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<WatchDescriptor, (u32, PathBuf)>> {
        self.0.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What `callgate exec` starts is served before it begins.
fn is_command(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().starts_with(EXEC_PREFIX.as_bytes())
}
