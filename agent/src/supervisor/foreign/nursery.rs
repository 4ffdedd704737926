//! New cgroups in workloads: whoever starts a container or a unit makes its cgroup first, and its process is in its network
//! namespace before the program begins. inotify(7) tells of the cgroup, so that looks come often just then.
//!
//! A workload may have any number of cgroups, so a thread of its own goes through them, and through no more than a share.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};

use super::Place;
use super::orders::Orders;
use crate::identity::members::DEEPEST;
use crate::identity::unit::EXEC_PREFIX;

/// Cgroups of one workload that are watched; what is made below further ones waits for the usual look.
const MOST: usize = 256;
/// Names that one walk through a workload's cgroups reads: not all stand for a cgroup that is watched.
const NAMES: usize = 16 * 1024;

/// The cgroups of all workloads, and those below them.
#[derive(Clone)]
pub(super) struct Nursery(Arc<Told>);

/// What the thread was told last and has not taken.
struct Told {
    places: Mutex<Option<Vec<(u32, PathBuf)>>>,
    bell: EventFd,
}

impl Nursery {
    /// Starts the thread that listens; each new cgroup makes the looks into its workload restless.
    ///
    /// # Errors
    /// If there is no room for an inotify instance (`fs.inotify.max_user_instances`) or a thread.
    pub(super) fn start(orders: Orders) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let told = Arc::new(Told {
            places: Mutex::default(),
            bell,
        });
        let mut listener = Listener {
            inotify,
            watched: Watched::default(),
            told: Arc::clone(&told),
            orders,
        };
        std::thread::Builder::new()
            .name("new-cgroups".into())
            .spawn(move || listener.run())?;
        Ok(Self(told))
    }

    /// Watches the cgroups of these workloads, and no others', as soon as the thread comes to it.
    pub(super) fn hold(&self, places: &[Place]) {
        let places = places.iter().map(|place| (place.number, place.directory.clone()));
        *self.0.places.lock().unwrap_or_else(PoisonError::into_inner) = Some(places.collect());
        // It is rung already if this fails.
        self.0.bell.write(1).ok();
    }
}

/// The thread.
struct Listener {
    inotify: Inotify,
    watched: Watched<WatchDescriptor>,
    told: Arc<Told>,
    orders: Orders,
}

impl Listener {
    fn run(&mut self) {
        loop {
            if let Err(error) = self.wait().and_then(|()| self.turn()) {
                tracing::warn!(%error, "the kernel tells of new cgroups no more: containers are served half a second later");
                return;
            }
        }
    }

    fn wait(&self) -> nix::Result<()> {
        let (inotify, bell) = (self.inotify.as_fd(), self.told.bell.as_fd());
        let mut both = [inotify, bell].map(|one| PollFd::new(one, PollFlags::POLLIN));
        match poll(&mut both, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn turn(&mut self) -> nix::Result<()> {
        if nothing_yet(self.told.bell.read())?.is_some() {
            let places = self
                .told
                .places
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            // Of two words that came together the first has brought both.
            places.into_iter().for_each(|places| self.hold(places));
        }
        let events = nothing_yet(self.inotify.read_events())?.unwrap_or_default();
        for event in events {
            if let Some(number) = self.take(event) {
                self.orders.give(|asked| {
                    asked.restless.insert(number);
                });
            }
        }
        Ok(())
    }

    fn hold(&mut self, places: Vec<(u32, PathBuf)>) {
        // The kernel forgets the others' watches with their cgroups.
        self.watched
            .keep(&places.iter().map(|(number, _)| *number).collect());
        for (number, directory) in places {
            self.add(number, directory);
        }
    }

    /// Watches a cgroup and those below it, the upper ones first, while the workload's share has room.
    fn add(&mut self, number: u32, top: PathBuf) {
        let mut names = NAMES;
        let mut open = VecDeque::from([(top, DEEPEST)]);
        while let Some((directory, levels)) = open.pop_front() {
            if !self.watch(number, &directory) {
                continue;
            }
            let Some(levels) = levels.checked_sub(1) else {
                continue;
            };
            // Made before they could be told of.
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                if names == 0 || !self.watched.has_room(number, open.len()) {
                    break;
                }
                names -= 1;
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !is_command(&entry.file_name()) {
                    open.push_back((entry.path(), levels));
                }
            }
        }
    }

    /// Says whether there is room for it. One that is gone already, or over the system's limit, waits for the usual look.
    fn watch(&mut self, number: u32, directory: &Path) -> bool {
        let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_ONLYDIR;
        if !self.watched.has_room(number, 0) {
            return false;
        }
        let watch = self.inotify.add_watch(directory, flags);
        watch.is_ok_and(|watch| {
            self.watched.insert(watch, number, directory);
            true
        })
    }

    /// The workload that has a new cgroup.
    fn take(&mut self, event: InotifyEvent) -> Option<u32> {
        if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            self.watched.remove(&event.wd);
            return None;
        }
        let name = event.name?;
        if !event.mask.contains(AddWatchFlags::IN_ISDIR) || is_command(&name) {
            return None;
        }
        let (number, above) = self.watched.by.get(&event.wd)?;
        let (number, made) = (*number, above.join(name));
        self.add(number, made);
        Some(number)
    }
}

/// What can be had without waiting.
fn nothing_yet<T>(had: nix::Result<T>) -> nix::Result<Option<T>> {
    match had {
        Ok(one) => Ok(Some(one)),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What is watched by what the kernel calls it, and how much of it is each workload's.
struct Watched<K> {
    by: HashMap<K, (u32, PathBuf)>,
    count: HashMap<u32, usize>,
}

impl<K> Default for Watched<K> {
    fn default() -> Self {
        Self {
            by: HashMap::new(),
            count: HashMap::new(),
        }
    }
}

impl<K: Eq + std::hash::Hash> Watched<K> {
    /// Whether the workload may have one more, beside so many.
    fn has_room(&self, number: u32, beside: usize) -> bool {
        self.count.get(&number).copied().unwrap_or(0) + beside < MOST
    }

    /// One that was watched already is called the same.
    fn insert(&mut self, key: K, number: u32, directory: &Path) {
        *self.count.entry(number).or_default() += 1;
        if let Some((before, _)) = self.by.insert(key, (number, directory.to_owned())) {
            self.uncount(before);
        }
    }

    fn remove(&mut self, key: &K) {
        if let Some((number, _)) = self.by.remove(key) {
            self.uncount(number);
        }
    }

    /// None of other workloads any more.
    fn keep(&mut self, numbers: &HashSet<u32>) {
        self.by.retain(|_, (number, _)| numbers.contains(number));
        self.count.retain(|number, _| numbers.contains(number));
    }

    fn uncount(&mut self, number: u32) {
        if let Some(count) = self.count.get_mut(&number) {
            *count = count.saturating_sub(1);
        }
    }
}

/// What `callgate exec` starts is served before it begins.
fn is_command(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().starts_with(EXEC_PREFIX.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// Well under what a client of a reload would notice.
    const SOON: Duration = Duration::from_millis(50);
    const PATIENCE: Duration = Duration::from_secs(30);

    fn place(number: u32, directory: PathBuf) -> Place {
        Place {
            number,
            id: 0,
            directory,
            listen: Vec::new(),
            spaces: 1,
        }
    }

    #[test]
    fn a_share_is_counted_once_for_each_that_is_watched() {
        let mut watched = Watched::default();
        for key in 0..MOST {
            assert!(watched.has_room(1, 0));
            watched.insert(key, 1, Path::new("/a"));
            watched.insert(key, 1, Path::new("/a"));
        }
        assert!(!watched.has_room(1, 0) && watched.has_room(2, 0));
        assert!(watched.has_room(2, MOST - 1) && !watched.has_room(2, MOST));
        watched.insert(0, 2, Path::new("/a"));
        assert!(watched.has_room(1, 0) && !watched.has_room(2, MOST - 1));
        watched.remove(&0);
        watched.remove(&0);
        assert!(watched.has_room(2, MOST - 1));
        watched.keep(&HashSet::from([2]));
        assert!(watched.by.is_empty() && watched.has_room(1, MOST - 1));
    }

    #[test]
    fn who_holds_twenty_thousand_cgroups_is_not_kept_waiting_and_is_told_of_new_ones() {
        const WORKLOADS: u32 = 40;
        // In memory, as cgroups are.
        let tree = tempfile::tempdir_in("/dev/shm").unwrap();
        let mut places = Vec::new();
        for number in 1..=WORKLOADS {
            let slice = tree.path().join(format!("slice-{number}"));
            for below in 0..20_000 / WORKLOADS {
                fs::create_dir_all(slice.join(format!("box-{below}"))).unwrap();
            }
            places.push(place(number, slice));
        }
        let orders = Orders::default();
        let nursery = Nursery::start(orders.clone()).unwrap();
        for _ in 0..3 {
            let start = Instant::now();
            nursery.hold(&places);
            assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
        }
        let last = &places.last().unwrap().directory;
        let start = Instant::now();
        let mut told = false;
        let mut turn = 0;
        while !told && start.elapsed() < PATIENCE {
            turn += 1;
            fs::create_dir(last.join(format!("new-{turn}"))).unwrap();
            told = orders
                .take(Duration::from_millis(20))
                .restless
                .contains(&WORKLOADS);
        }
        assert!(told);
    }
}
