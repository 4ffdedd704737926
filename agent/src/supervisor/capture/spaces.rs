//! Serving workloads inside other network namespaces: listeners there, and sockets for calls that leave from there.
//!
//! Whatever is open in a namespace keeps it alive, so all is let go of when no process of the workload is in it any more.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use callgate_common::names::{MAX_LISTENERS, MAX_WORKLOADS};
use socket2::{Domain, Socket, Type};
use tokio::sync::Notify;

use super::sockets::{Offer, Sockets};
use super::wanted::{Entrance, Wanted};
use super::{Capture, Error};
use crate::budget::Lines;
use crate::ebpf::{Netns, Origin, Reason, Report};
use crate::identity::process::HeldProcess;
use crate::identity::{WorkloadName, members};
use crate::supervisor::canary::Space;
use crate::supervisor::foreign::{self, Seen};
use crate::supervisor::io as io_error;

/// Namespaces that one workload is served in at most. Each takes four sockets here and in the worker.
const MOST: usize = 64;
/// Namespaces by workload number and cookie.
type Held = HashMap<(u32, u64), Arc<Netns>>;

/// Where workloads are served besides the agent's own namespace.
#[derive(Clone, Debug, Default)]
pub(in crate::supervisor) struct Doors(Arc<Mutex<Held>>);

impl Doors {
    /// A TCP socket in there, non-blocking.
    ///
    /// # Errors
    /// If the workload is not served there (any more), or no socket can be made.
    pub(in crate::supervisor) fn socket(&self, number: u32, cookie: u64, v6: bool) -> io::Result<OwnedFd> {
        let found = self.lock().get(&(number, cookie)).cloned();
        let netns = found.ok_or_else(|| io::Error::other("the network namespace is gone"))?;
        let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
        let socket = netns.inside(|| Socket::new(domain, Type::STREAM, None))?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All namespaces but the agent's own.
#[derive(Debug)]
pub(super) struct Spaces {
    /// By workload number and inode.
    served: BTreeMap<(u32, u64), Served>,
    wanted: Wanted,
    /// Workloads of which was said that they are in too many.
    told: BTreeSet<u32>,
    /// A workload may come to new namespaces all the time, and leave them.
    moves: Lines<u32>,
    failures: Lines<u32>,
    doors: Doors,
    /// What changed outside of [`Capture::keep_spaces`].
    changed: Vec<Change>,
}

#[derive(Debug)]
pub(super) struct Served {
    pub(super) netns: Arc<Netns>,
    pub(super) sockets: Sockets,
    since: Instant,
}

impl Served {
    /// From now on.
    pub(super) fn new(netns: Arc<Netns>, sockets: Sockets) -> Self {
        Self {
            netns,
            sockets,
            since: Instant::now(),
        }
    }
}

impl Spaces {
    /// None.
    pub(super) fn new() -> Self {
        Self {
            served: BTreeMap::new(),
            wanted: Wanted::new(),
            told: BTreeSet::new(),
            moves: Lines::default(),
            failures: Lines::default(),
            doors: Doors::default(),
            changed: Vec::new(),
        }
    }

    /// The cookies of the namespaces that a workload is served in; the one that was entered last comes first.
    pub(super) fn newest_first(&self, number: u32) -> Vec<u64> {
        let mut all: Vec<&Served> = self.of(number).map(|(_, served)| served).collect();
        all.sort_by_key(|served| Reverse(served.since));
        all.iter().map(|served| served.netns.cookie()).collect()
    }

    fn of(&self, number: u32) -> impl Iterator<Item = (u64, &Served)> {
        of(&self.served, number)
    }
}

/// Those of one workload, by inode.
fn of(served: &BTreeMap<(u32, u64), Served>, number: u32) -> impl Iterator<Item = (u64, &Served)> {
    let all = served.range((number, 0)..=(number, u64::MAX));
    all.map(|((_, inode), served)| (*inode, served))
}

/// How many namespaces each of so many workloads is served in: their listeners together fit the kernel's table, so that
/// nobody's keep another's out.
pub(super) fn share(workloads: usize) -> usize {
    ((MAX_LISTENERS - MAX_WORKLOADS) / workloads.max(1)).clamp(1, MOST)
}

/// What changed.
#[derive(Debug)]
pub(in crate::supervisor) enum Change {
    /// The workload is served there now.
    Opened {
        /// Its number.
        number: u32,
        /// The namespace's inode.
        inode: u64,
    },
    /// And here no more.
    Closed {
        /// The workload.
        workload: WorkloadName,
        /// Its number.
        number: u32,
        /// The namespace's cookie.
        netns: u64,
    },
}

impl Capture {
    /// Serves workloads in the network namespaces that they were seen in, and no more in those that they have left.
    pub(in crate::supervisor) fn keep_spaces(&mut self) -> Vec<Change> {
        for seen in self.foreign.seen() {
            // It was let go of after the look.
            if self.name_of(seen.number).is_some() {
                if seen.is_crowded {
                    self.tell_crowded(seen.number);
                }
                self.leave(&seen);
                self.want(seen);
            }
        }
        let share = share(self.held.len());
        let Spaces { served, wanted, .. } = &mut self.spaces;
        let room = |number| share.saturating_sub(of(served, number).count());
        let crowded = wanted.crowded(room);
        for ((number, inode), entrance) in wanted.take_due(room) {
            self.try_enter(number, inode, entrance);
        }
        for number in crowded {
            self.tell_crowded(number);
        }
        std::mem::take(&mut self.spaces.changed)
    }

    /// Says once of each workload that it has no room in some namespace.
    fn tell_crowded(&mut self, number: u32) {
        if self.spaces.told.insert(number) {
            let most = share(self.held.len());
            tracing::warn!(
                workload = number,
                most,
                "a workload is in more network namespaces than it is served in; the others get no listener"
            );
        }
    }

    fn want(&mut self, seen: Seen) {
        let Spaces { served, wanted, .. } = &mut self.spaces;
        let number = seen.number;
        wanted.see(seen, |inode| served.contains_key(&(number, inode)));
    }

    /// Serves workloads where a call of theirs was just refused for want of a listener.
    pub(super) fn serve_refused(&mut self, reports: &[Report]) {
        let refused = reports.iter().filter(|one| one.reason == Reason::NoListener);
        // One glance at each process.
        let callers: BTreeMap<_, &Origin> = refused
            .map(|one| ((one.origin.workload(), one.origin.tgid()), &one.origin))
            .collect();
        for ((number, _), origin) in callers {
            let caller = caller(origin);
            if caller.and_then(|caller| self.meet(number, &caller)).is_none() {
                self.foreign.hurry(number);
            }
        }
    }

    /// Serves a workload where this new process of its is, before the process can call from there.
    pub(super) fn serve_entered(&mut self, workload: &WorkloadName, process: &HeldProcess) {
        let Some(number) = self.held.get(workload).map(|held| held.number) else {
            return;
        };
        if let Some(inode) = self.meet(number, process)
            && self.room(number) > 0
            && let Some(entrance) = self.spaces.wanted.take(number, inode)
        {
            self.try_enter(number, inode, entrance);
        }
        self.foreign.hurry(number);
    }

    /// Notes where a process of a workload is; gives the namespace's inode if it is to be entered.
    fn meet(&mut self, number: u32, process: &HeldProcess) -> Option<u64> {
        let slice = self.name_of(number)?.slice();
        if !members::is_below(process, slice.as_ref()) {
            return None;
        }
        let (inode, file) = foreign::elsewhere(process)?;
        if self.spaces.served.contains_key(&(number, inode)) {
            return None;
        }
        let room = self.room(number);
        if !self.spaces.wanted.meet(number, inode, file, room) {
            self.tell_crowded(number);
            return None;
        }
        // The next look is to say so, or else that nobody is there any more.
        self.foreign.know(number, inode);
        Some(inode)
    }

    /// Told when there is something for [`Capture::keep_spaces`] that does not wait.
    pub(in crate::supervisor) fn moved(&self) -> Arc<Notify> {
        self.foreign.moved()
    }

    /// How many more namespaces a workload may be served in.
    fn room(&self, number: u32) -> usize {
        share(self.held.len()).saturating_sub(self.spaces.of(number).count())
    }

    /// There is room for it.
    fn try_enter(&mut self, number: u32, inode: u64, Entrance { file, patience }: Entrance) {
        let (file, error) = match self.enter(number, inode, file) {
            Ok(()) => return,
            Err(failed) => failed,
        };
        if patience.is_fresh()
            && let Some(left_out) = self.spaces.failures.next(&number)
        {
            tracing::warn!(%error, workload = number, netns_inode = inode, left_out, "a workload can't be served in its network namespace (is the loopback device up there?); its connections are refused until it can");
        }
        self.spaces.wanted.again(number, inode, file, patience);
    }

    /// Lets go of namespaces in which the workload was not seen any more. Of one that is served only since the look
    /// began, the look knows nothing.
    fn leave(&mut self, seen: &Seen) {
        let served = self.spaces.of(seen.number);
        let left: Vec<u64> = served
            .filter(|(inode, served)| !seen.present.contains_key(inode) && served.since <= seen.began)
            .map(|(inode, _)| inode)
            .collect();
        for inode in left {
            self.close(seen.number, inode);
        }
    }

    /// Lets go of what is over each workload's share of the kernel's table when there are so many of them.
    pub(super) fn share_spaces(&mut self, workloads: usize) {
        let share = share(workloads);
        let numbers: BTreeSet<u32> = self.spaces.served.keys().map(|(number, _)| *number).collect();
        for number in numbers {
            for cookie in self.spaces.newest_first(number) {
                if self.spaces.of(number).count() <= share {
                    break;
                }
                let found = self
                    .spaces
                    .of(number)
                    .find(|(_, one)| one.netns.cookie() == cookie);
                if let Some(inode) = found.map(|(inode, _)| inode) {
                    self.close(number, inode);
                }
            }
        }
        self.share_store(workloads);
    }

    /// Lets go of all namespaces of a workload that is let go of.
    pub(super) fn leave_all(&mut self, number: u32) {
        let nowhere = Seen {
            number,
            began: Instant::now(),
            is_news: false,
            is_crowded: false,
            present: BTreeMap::new(),
        };
        self.leave(&nowhere);
        self.want(nowhere);
        self.spaces.told.remove(&number);
    }

    fn close(&mut self, number: u32, inode: u64) {
        let Some(Served { netns, .. }) = self.spaces.served.remove(&(number, inode)) else {
            return;
        };
        let cookie = netns.cookie();
        self.spaces.doors.lock().remove(&(number, cookie));
        if let Err(error) = self.programs.unmark_listeners(number, cookie) {
            tracing::warn!(%error, workload = number, "listeners of a network namespace that is no more stay noted");
        }
        let Some(workload) = self.name_of(number).cloned() else {
            return;
        };
        self.forget_space(&workload, cookie);
        if let Some(left_out) = self.spaces.moves.next(&number) {
            tracing::info!(%workload, netns = cookie, left_out, "a workload has left a network namespace");
        }
        self.spaces.changed.push(Change::Closed {
            workload,
            number,
            netns: cookie,
        });
    }

    /// The file comes back with the error.
    fn enter(&mut self, number: u32, inode: u64, file: OwnedFd) -> Result<(), (OwnedFd, Error)> {
        let failed = || io_error("enter", Path::new("a network namespace"));
        let netns = Netns::hold(file).map_err(|(file, error)| (file, failed()(error)))?;
        let made = netns.inside(Sockets::make).map_err(failed());
        let marked = made.and_then(|sockets| {
            sockets.mark(&mut self.programs, number)?;
            Ok(sockets)
        });
        let sockets = match marked {
            Ok(sockets) => sockets,
            Err(error) => {
                let cleared = self.programs.unmark_listeners(number, netns.cookie());
                return Err((netns.into(), cleared.err().map_or(error, Error::from)));
            }
        };
        let served = Served::new(Arc::new(netns), sockets);
        if let Some(name) = self.name_of(number).cloned() {
            self.keep_space(&name, &served);
        }
        self.serve(number, inode, served);
        self.spaces.changed.push(Change::Opened { number, inode });
        Ok(())
    }

    /// Notes that a workload is served there.
    pub(super) fn serve(&mut self, number: u32, inode: u64, served: Served) {
        let netns = Arc::clone(&served.netns);
        if let Some(left_out) = self.spaces.moves.next(&number) {
            tracing::info!(
                workload = number,
                netns = netns.cookie(),
                left_out,
                "a workload is served in a network namespace of its own"
            );
        }
        self.foreign.know(number, inode);
        let doors = self.spaces.doors.clone();
        doors.lock().insert((number, netns.cookie()), netns);
        self.spaces.served.insert((number, inode), served);
    }

    /// The namespaces that a workload is served in besides the agent's own.
    pub(super) fn served_in(&self, number: u32) -> impl Iterator<Item = Space> {
        self.spaces.of(number).map(|(inode, served)| Space {
            netns: Arc::clone(&served.netns),
            inode,
        })
    }

    /// Marks all listeners anew.
    pub(super) fn mark_spaces(&mut self) -> Result<(), Error> {
        let Self { spaces, programs, .. } = self;
        for ((number, _), served) in &spaces.served {
            served.sockets.mark(programs, *number)?;
        }
        Ok(())
    }

    /// The sockets that serve a workload in one namespace, duplicated for a worker; none if it has left.
    pub(in crate::supervisor) fn listeners_in(&self, number: u32, inode: u64) -> Result<Vec<Offer>, Error> {
        let served = self.spaces.served.get(&(number, inode));
        match (served, self.name_of(number)) {
            (Some(served), Some(name)) => served.sockets.offers(name, number, served.netns.cookie()),
            _ => Ok(Vec::new()),
        }
    }

    /// The same for all namespaces of one workload but the agent's own.
    pub(super) fn listeners_elsewhere(&self, number: u32) -> Result<Vec<Offer>, Error> {
        let mut all = Vec::new();
        for (_, inode) in self
            .spaces
            .served
            .range((number, 0)..=(number, u64::MAX))
            .map(|(key, _)| *key)
        {
            all.extend(self.listeners_in(number, inode)?);
        }
        Ok(all)
    }

    /// Where calls from other namespaces leave.
    pub(in crate::supervisor) fn doors(&self) -> Doors {
        self.spaces.doors.clone()
    }

    /// Cookie of the agent's own network namespace.
    pub(in crate::supervisor) fn home(&self) -> u64 {
        self.home
    }
}

/// The process that made a call, if it is there still.
fn caller(origin: &Origin) -> Option<HeldProcess> {
    let pid = origin.tgid()?;
    let process = match origin.start_time() {
        Some(start) => HeldProcess::open_started_at(pid, start),
        None => HeldProcess::open(pid),
    };
    process.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_of_all_workloads_fit_the_table_beside_their_listeners_on_the_host() {
        for workloads in 1..=MAX_WORKLOADS {
            let share = share(workloads);
            assert!((1..=MOST).contains(&share));
            assert!(workloads * (share + 1) <= MAX_LISTENERS, "{workloads}");
        }
        assert_eq!(share(0), MOST);
    }
}
