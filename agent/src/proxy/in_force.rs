//! The policy that the worker decides by, with the name that records give it.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::audit::record::PolicyVersion;
use crate::policy::Policy;

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
