//! Who waits for which answer of the supervisor, and how much one workload may ask.
//!
//! A workload's processes decide how often the supervisor is asked on its behalf: by connecting, by calling where
//! rules ask for the executable, by naming hosts in ClientHellos. None may use up what others need.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::AskError;
use crate::addr::HostName;
use crate::budget::{Budgets, Rate};
use crate::channel::{Intermediate, Refusal};
use crate::identity::{Executable, Identity, WorkloadName};

/// Questions under way at most.
const MAX_PENDING: usize = 65_536;
/// Those of one workload: as many as it may have connections and calls by default, and some more.
const MAX_OF_ONE: u32 = 4096;
/// Questions on behalf of one workload.
const QUESTIONS: Rate = Rate {
    burst: 10_000,
    per_second: 5000,
};
/// Intermediates that are signed on behalf of one workload: a policy's hosts at once, and then what wildcards and
/// hosts that no rule names may need.
const INTERMEDIATES: Rate = Rate {
    burst: 1000,
    per_second: 20,
};

pub(super) type Waiter<T> = oneshot::Sender<Result<T, Refusal>>;

/// Who waits for which answer. The lock is held for a map operation only.
#[derive(Debug)]
pub(super) struct Pending {
    waiters: Mutex<Waiters>,
    questions: Budgets<WorkloadName>,
    intermediates: Budgets<WorkloadName>,
}

impl Default for Pending {
    fn default() -> Self {
        Self {
            waiters: Mutex::default(),
            questions: Budgets::new(QUESTIONS),
            intermediates: Budgets::new(INTERMEDIATES),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Waiters {
    closed: bool,
    pub(super) identities: HashMap<u64, Waiter<Box<Identity>>>,
    pub(super) executables: HashMap<u64, Waiter<Executable>>,
    pub(super) sockets: HashMap<u64, Waiter<OwnedFd>>,
    pub(super) canaries: HashMap<u64, Waiter<bool>>,
    intermediates: HashMap<HostName, Vec<Waiter<Arc<Intermediate>>>>,
    /// Askers in all lists of `intermediates`.
    joined: usize,
    /// Questions under way by workload.
    of: HashMap<WorkloadName, u32>,
}

/// A question under way on behalf of a workload, until it is dropped.
#[derive(Debug)]
pub(super) struct Open {
    pending: Arc<Pending>,
    workload: WorkloadName,
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut waiters = self.pending.lock();
        if let Some(count) = waiters.of.get_mut(&self.workload) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                waiters.of.remove(&self.workload);
            }
        }
    }
}

impl Pending {
    pub(super) fn lock(&self) -> MutexGuard<'_, Waiters> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A question on behalf of `workload` is about to be asked.
    pub(super) fn open(self: &Arc<Self>, workload: &WorkloadName) -> Result<Open, AskError> {
        let open = Open {
            pending: Arc::clone(self),
            workload: workload.clone(),
        };
        // `open`, if it is dropped for one too many, takes its count back.
        let count = {
            let mut waiters = self.lock();
            waiters.has_room()?;
            let count = waiters.of.entry(workload.clone()).or_default();
            *count += 1;
            *count
        };
        if count > MAX_OF_ONE || !self.questions.spend(workload, 1) {
            return Err(AskError::Limit);
        }
        Ok(open)
    }

    /// Waits for the intermediate of `host`. Says whether this asker is the first: it has to ask, and one more is
    /// signed on behalf of its workload.
    pub(super) fn join(
        &self,
        workload: &WorkloadName,
        host: &HostName,
        waiter: Waiter<Arc<Intermediate>>,
    ) -> Result<bool, AskError> {
        let mut waiters = self.lock();
        let first = !waiters.intermediates.contains_key(host);
        if first && !self.intermediates.spend(workload, 1) {
            return Err(AskError::Limit);
        }
        waiters.join(host, waiter);
        Ok(first)
    }
}

impl Waiters {
    pub(super) fn has_room(&self) -> Result<(), AskError> {
        if self.closed {
            return Err(AskError::Closed);
        }
        let asked = self.identities.len() + self.executables.len() + self.sockets.len() + self.canaries.len();
        if asked + self.joined >= MAX_PENDING {
            return Err(AskError::Busy);
        }
        Ok(())
    }

    /// Whether no question is under way.
    pub(super) fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    fn join(&mut self, host: &HostName, waiter: Waiter<Arc<Intermediate>>) {
        self.intermediates.entry(host.clone()).or_default().push(waiter);
        self.joined += 1;
    }

    pub(super) fn take_intermediate(&mut self, host: &HostName) -> Vec<Waiter<Arc<Intermediate>>> {
        let waiters = self.intermediates.remove(host).unwrap_or_default();
        self.joined = self.joined.saturating_sub(waiters.len());
        waiters
    }

    pub(super) fn close(&mut self) {
        *self = Self {
            closed: true,
            ..Self::default()
        };
    }
}
