//! Serving workloads inside other network namespaces: listeners there, and sockets for calls that leave from there.
//!
//! Whatever is open in a namespace keeps it alive, so all is let go of when no process of the workload is in it any more.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use socket2::{Domain, Socket, Type};

use super::sockets::{Offer, Sockets};
use super::{Capture, Error};
use crate::ebpf::Netns;
use crate::identity::WorkloadName;
use crate::supervisor::foreign::Seen;
use crate::supervisor::io as io_error;

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
#[derive(Debug, Default)]
pub(super) struct Spaces {
    /// By workload number and inode.
    served: BTreeMap<(u32, u64), Served>,
    /// Where workloads can't be served, so that it is said once.
    failed: BTreeSet<(u32, u64)>,
    doors: Doors,
    /// What changed outside of [`Capture::keep_spaces`].
    changed: Vec<Change>,
}

#[derive(Debug)]
struct Served {
    netns: Arc<Netns>,
    sockets: Sockets,
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
        /// The namespace's cookie.
        netns: u64,
    },
}

impl Capture {
    /// Serves workloads in the network namespaces that they were seen in, and no more in those that they have left.
    pub(in crate::supervisor) fn keep_spaces(&mut self) -> Vec<Change> {
        let mut changes = std::mem::take(&mut self.spaces.changed);
        for seen in self.foreign.seen() {
            // It was let go of after the look.
            if self.name_of(seen.number).is_none() {
                continue;
            }
            changes.extend(self.leave(&seen));
            let number = seen.number;
            for (inode, file) in seen.present {
                if self.spaces.served.contains_key(&(number, inode)) {
                    continue;
                }
                match self.enter(number, inode, file) {
                    Ok(()) => {
                        self.spaces.failed.remove(&(number, inode));
                        changes.push(Change::Opened { number, inode });
                    }
                    Err(error) => {
                        if self.spaces.failed.insert((number, inode)) {
                            tracing::warn!(%error, workload = number, "a workload can't be served in its network namespace (is the loopback device up there?); its connections are refused until it can");
                        }
                    }
                }
            }
        }
        changes
    }

    /// Lets go of namespaces in which the workload was not seen any more.
    fn leave(&mut self, seen: &Seen) -> Vec<Change> {
        let of = (seen.number, 0)..=(seen.number, u64::MAX);
        self.spaces
            .failed
            .retain(|(number, inode)| *number != seen.number || seen.present.contains_key(inode));
        let left: Vec<(u32, u64)> = self
            .spaces
            .served
            .range(of)
            .map(|(key, _)| *key)
            .filter(|(_, inode)| !seen.present.contains_key(inode))
            .collect();
        left.into_iter().filter_map(|key| self.close(key)).collect()
    }

    /// Lets go of all namespaces of a workload that is let go of.
    pub(super) fn leave_all(&mut self, number: u32) {
        let nowhere = Seen {
            number,
            present: BTreeMap::new(),
        };
        let closed = self.leave(&nowhere);
        self.spaces.changed.extend(closed);
    }

    fn close(&mut self, key: (u32, u64)) -> Option<Change> {
        let Served { netns, .. } = self.spaces.served.remove(&key)?;
        let (number, cookie) = (key.0, netns.cookie());
        self.spaces.doors.lock().remove(&(number, cookie));
        if let Err(error) = self.programs.unmark_listeners(number, cookie) {
            tracing::warn!(%error, workload = number, "listeners of a network namespace that is no more stay noted");
        }
        let workload = self.name_of(number)?.clone();
        tracing::info!(%workload, netns = cookie, "a workload has left a network namespace");
        Some(Change::Closed {
            workload,
            netns: cookie,
        })
    }

    fn enter(&mut self, number: u32, inode: u64, file: OwnedFd) -> Result<(), Error> {
        let failed = || io_error("enter", Path::new("a network namespace"));
        let netns = Netns::hold(file).map_err(failed())?;
        let sockets = netns.inside(Sockets::make).map_err(failed())?;
        let marked = sockets.mark(&mut self.programs, number);
        if marked.is_err() {
            self.programs.unmark_listeners(number, netns.cookie())?;
        }
        marked?;
        tracing::info!(
            workload = number,
            netns = netns.cookie(),
            "a workload is served in a network namespace of its own"
        );
        let netns = Arc::new(netns);
        let doors = self.spaces.doors.clone();
        doors.lock().insert((number, netns.cookie()), Arc::clone(&netns));
        self.spaces
            .served
            .insert((number, inode), Served { netns, sockets });
        Ok(())
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
