//! Callers lately identified: a process that opens one connection after another is looked at once a second.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use crate::audit::record::KnownCaller;
use crate::ebpf::Origin;
use crate::identity::Identity;

/// What `/proc` showed of a process counts for this long. The kernel's record is of this very connection: a process
/// that has become another, by execve or by ending, has another record.
const FRESH: Duration = Duration::from_secs(1);

/// Callers of one data thread that are remembered at one time.
const MOST: usize = 256;

/// Callers of one data thread.
#[derive(Debug, Default)]
pub(super) struct Callers(RefCell<HashMap<Key, (Instant, Caller)>>);

/// Who calls, for policy and for records.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) identity: Rc<Identity>,
    pub(super) record: KnownCaller,
}

impl From<Identity> for Caller {
    fn from(identity: Identity) -> Self {
        Self {
            record: crate::audit::record::Caller::from(&identity).into(),
            identity: Rc::new(identity),
        }
    }
}

/// All that an identity is made from and that can differ from one connection of a process to the next.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Key {
    workload: u32,
    cgroup_id: u64,
    netns_cookie: u64,
    tgid: u32,
    start_time: u64,
    exec_id: u64,
    exe: (u64, u64),
    uid: u32,
    gid: u32,
    comm: Box<[u8]>,
}

impl Key {
    /// `None` where the kernel's record does not tell two processes apart.
    fn of(origin: &Origin) -> Option<Self> {
        Some(Self {
            workload: origin.workload(),
            cgroup_id: origin.cgroup_id(),
            netns_cookie: origin.netns_cookie(),
            tgid: origin.tgid()?,
            start_time: origin.start_time()?,
            exec_id: origin.exec_id()?,
            exe: origin.exe()?,
            uid: origin.uid(),
            gid: origin.gid(),
            comm: origin.comm().into(),
        })
    }
}

impl Callers {
    /// Who made this connection, if the same process made another within a second.
    pub(super) fn get(&self, origin: &Origin) -> Option<Caller> {
        let callers = self.0.borrow();
        let (since, caller) = callers.get(&Key::of(origin)?)?;
        (since.elapsed() < FRESH).then(|| caller.clone())
    }

    /// Remembers who made a connection. Not one of whom something is unknown: the next look may find it.
    pub(super) fn add(&self, origin: &Origin, caller: &Caller) {
        let Some(key) = Key::of(origin).filter(|_| caller.identity.executable.is_some()) else {
            return;
        };
        let mut callers = self.0.borrow_mut();
        if callers.len() >= MOST {
            callers.retain(|_, (since, _)| since.elapsed() < FRESH);
        }
        if callers.len() < MOST {
            callers.insert(key, (Instant::now(), caller.clone()));
        }
    }

    /// Forgets all: the policy may have changed who is who.
    pub(super) fn clear(&self) {
        self.0.borrow_mut().clear();
    }
}

#[cfg(test)]
mod tests;
