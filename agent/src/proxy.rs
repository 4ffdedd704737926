//! The path of a call: accept, identify, detect, decide, inject, forward, record.
//!
//! [`connection`] takes an accepted connection through the first three; `request` takes each request
//! through the rest. Everything that can refuse does so before a byte leaves the host. Only this module knows
//! the order.
//!
//! One data thread is one core: its runtime, its upstream pool, its live calls. What the threads share is
//! immutable and swapped whole.

mod ahead;
mod alert;
mod answer;
mod body;
mod callers;
pub mod connection;
mod failure;
mod figures;
mod finish;
mod forward;
mod in_force;
mod intercept;
mod limits;
mod pool;
pub mod questions;
mod request;
mod taking;
mod tracker;
mod tunnel;
mod upgrade;
mod upstream;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::audit;
use crate::budget::{Budgets, Lines, Rate};
use crate::channel;
use crate::credential;
use crate::dns;
use crate::ebpf;
use crate::identity::WorkloadName;
use crate::tls;

use callers::Callers;
pub use figures::{Arriving, Carried, Figures};
pub use in_force::{Enforced, InForce, RootsInForce};
pub use limits::Limits;
use pool::{Pool, PoolLimits};
use tracker::Tracker;

/// What all data threads share.
#[derive(Debug)]
pub struct Shared {
    /// The current policy.
    pub policy: InForce,
    /// The current value of each credential.
    pub credentials: credential::store::Store,
    /// Where each call is recorded.
    pub audit: audit::Log,
    /// Leaves for downstream handshakes.
    pub leaves: tls::leaf::Leaves,
    /// The downstream side of TLS.
    pub acceptor: tls::downstream::Acceptor,
    /// What upstreams are verified with.
    pub roots: RootsInForce,
    /// The kernel's record of each accepted connection.
    pub origins: ebpf::maps::Origins,
    /// The supervisor, for what only it may look at.
    pub supervisor: channel::worker::Client,
    /// Where names are looked up.
    pub names: dns::resolver::Names,
    /// What addresses names were given.
    pub given: dns::given::Given,
    /// What each workload has asked about names.
    pub questions: questions::Questions,
    /// How much of everything.
    pub limits: Limits,
    /// How many data threads there are.
    pub threads: usize,
    /// Cookie of the agent's own network namespace.
    pub netns: u64,
    /// The agent's memory is short: no new connections.
    pub memory_short: AtomicBool,
    /// Connections refused before it is known who makes them, at [`REFUSALS`] for each workload's listeners: each of
    /// those has a record, the rest is counted. Anybody on the host can make such connections.
    pub refusals: Budgets<WorkloadName>,
    /// Lines in the agent's log that a workload has written at will.
    pub lines: Lines<WorkloadName>,
}

/// One core's share of the work.
#[derive(Debug)]
pub struct DataThread {
    shared: Arc<Shared>,
    pool: Pool,
    callers: Callers,
    tracker: Rc<Tracker>,
    resolver: dns::resolver::Resolver,
    figures: Arc<Figures>,
    draining: CancellationToken,
    closing_idle: CancellationToken,
    /// Each with the number of the roots that it verifies by.
    connectors: RefCell<HashMap<WorkloadName, (u64, tls::upstream::Connector)>>,
}

/// Records of refused connections or questions of one workload, each for itself; beyond it they are counted.
pub const REFUSALS: Rate = Rate {
    burst: 64,
    per_second: 20,
};

/// How long a revoked call's client has to notice it.
const REVOKED: Duration = Duration::from_secs(2);

/// How often [`DataThread::sweep`] should be called.
pub const SWEEP: Duration = Duration::from_secs(5);

impl DataThread {
    /// An idle thread; to be made on its own runtime.
    ///
    /// # Errors
    /// If names can't be looked up as the settings say.
    pub fn new(shared: Arc<Shared>, figures: Arc<Figures>) -> Result<Rc<Self>, dns::Error> {
        let limits = PoolLimits {
            idle: Duration::from_secs(50),
            kept_per_workload: (shared.limits.connections() / shared.threads.max(1)).clamp(8, 256),
        };
        let resolver = dns::resolver::Resolver::new(&shared.names, shared.given.clone())?;
        Ok(Rc::new(Self {
            shared,
            resolver,
            pool: Pool::new(limits),
            callers: Callers::default(),
            tracker: Rc::default(),
            figures,
            draining: CancellationToken::new(),
            closing_idle: CancellationToken::new(),
            connectors: RefCell::default(),
        }))
    }

    /// Puts every live call to the current policy. What that revokes ends when its client next takes or sends a byte; a
    /// client that does neither is given a moment, and then loses its connection.
    pub fn redecide(&self) {
        self.callers.clear();
        if self.tracker.redecide() {
            let tracker = Rc::clone(&self.tracker);
            tokio::task::spawn_local(async move {
                tokio::time::sleep(REVOKED).await;
                tracker.break_off();
            });
        }
    }

    /// Ends every live call.
    pub fn cut_off(&self) {
        self.tracker.cut_off();
    }

    /// How many calls are under way.
    #[must_use]
    pub fn live_calls(&self) -> usize {
        self.tracker.len()
    }

    /// Lets go of upstream connections that have been idle for too long, of the sessions of workloads that the policy
    /// does not name any more, and of what names were given so long ago that it counts no more.
    pub fn sweep(&self) {
        self.pool.sweep();
        self.shared.given.sweep();
        let enforced = self.shared.policy.current();
        let is_named = |name: &WorkloadName| enforced.policy.workload(name).is_some();
        self.connectors.borrow_mut().retain(|name, _| is_named(name));
    }

    /// Lets go of the upstream connections that are kept for the workload in this network namespace: they would keep it alive.
    pub fn forget(&self, workload: &WorkloadName, netns: u64) {
        self.pool.forget(workload, netns);
    }

    /// Lets client connections end: each answer says that it is the last, streams that come after are turned away.
    /// A connection that is idle, or has not brought its first request yet, still has its next one answered.
    pub fn drain(&self) {
        self.draining.cancel();
    }

    /// Closes client connections that have no request under way, now and as soon as they have none.
    pub fn close_idle(&self) {
        self.closing_idle.cancel();
    }

    /// Whether no connection is left.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.figures.connections() == 0 && self.live_calls() == 0
    }

    /// TLS towards the world with the workload's own session store: an upstream must not be able to link two
    /// workloads by a resumed session. Sessions of other roots than those in force go with their store: one that is
    /// resumed is not verified.
    fn connector(&self, workload: &WorkloadName) -> Result<tls::upstream::Connector, tls::Error> {
        let roots = self.shared.roots.current();
        let mut connectors = self.connectors.borrow_mut();
        if let Some((number, connector)) = connectors.get(workload)
            && *number == roots.number
        {
            return Ok(connector.clone());
        }
        let connector = tls::upstream::Connector::new(&roots.roots)?;
        connectors.insert(workload.clone(), (roots.number, connector.clone()));
        Ok(connector)
    }
}
