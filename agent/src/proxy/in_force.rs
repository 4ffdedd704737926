//! What the worker goes by until the supervisor sends another: the policy, with the name that records give it, and the
//! roots that upstreams are verified by.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::audit::record::PolicyVersion;
use crate::policy::Policy;
use crate::tls::upstream::Roots;

/// A policy and which one it is.
#[derive(Debug)]
pub struct Enforced {
    /// The policy.
    pub policy: Policy,
    /// Its digest and generation, as records name it.
    pub version: Arc<PolicyVersion>,
    /// Whether a call's headers have to be kept to put it to this policy again.
    pub needs_headers: bool,
}

impl Enforced {
    fn new(policy: Policy, generation: u64) -> Self {
        let version = PolicyVersion {
            digest: policy.digest().to_string().into(),
            generation,
        };
        let needs_headers = policy.workloads().any(|workload| workload.needs().headers);
        Self {
            policy,
            version: Arc::new(version),
            needs_headers,
        }
    }
}

/// Holds the policy in force. Reading never blocks; one decision uses one of what it gives throughout.
#[derive(Debug)]
pub struct InForce(ArcSwap<Enforced>);

impl InForce {
    /// Begins with a policy that allows nothing, as generation 0.
    #[must_use]
    pub fn nothing() -> Self {
        Self(ArcSwap::from_pointee(Enforced::new(Policy::nothing(), 0)))
    }

    /// What is in force now.
    #[must_use]
    pub fn current(&self) -> Arc<Enforced> {
        self.0.load_full()
    }

    /// Puts another in force.
    pub fn replace(&self, policy: Policy, generation: u64) {
        self.0.store(Arc::new(Enforced::new(policy, generation)));
    }
}

/// Roots and which ones they are.
#[derive(Debug)]
pub struct Numbered {
    /// The roots.
    pub roots: Roots,
    /// How many there were before them.
    pub number: u64,
}

/// Holds the roots in force. Reading never blocks.
#[derive(Debug)]
pub struct RootsInForce(ArcSwap<Numbered>);

impl RootsInForce {
    /// Begins with these.
    #[must_use]
    pub fn new(roots: Roots) -> Self {
        Self(ArcSwap::from_pointee(Numbered { roots, number: 0 }))
    }

    /// What is in force now.
    #[must_use]
    pub fn current(&self) -> Arc<Numbered> {
        self.0.load_full()
    }

    /// Puts others in force.
    pub fn replace(&self, roots: Roots) {
        self.0.rcu(|before| Numbered {
            roots: roots.clone(),
            number: before.number + 1,
        });
    }
}
