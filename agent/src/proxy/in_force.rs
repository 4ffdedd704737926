//! What the worker goes by until the supervisor sends another: the policy, with the name that records give it, and the
//! roots that upstreams are verified by.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::audit::record::PolicyVersion;
use crate::identity::WorkloadName;
use crate::policy::Policy;
use crate::tls::upstream::Roots;

/// A policy and which one it is.
#[derive(Debug)]
pub struct Enforced {
    /// The policy.
    pub policy: Policy,
    /// Its digest and generation, as records name it.
    pub version: Arc<PolicyVersion>,
}

impl Enforced {
    fn new(policy: Policy, generation: u64) -> Self {
        let version = PolicyVersion {
            digest: policy.digest().to_string().into(),
            generation,
        };
        Self {
            policy,
            version: Arc::new(version),
        }
    }

    /// Whether the headers of a workload's call have to be kept to put it to this policy again.
    #[must_use]
    pub fn needs_headers(&self, workload: &WorkloadName) -> bool {
        let workload = self.policy.workload(workload);
        workload.is_some_and(|workload| workload.needs().headers)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Source;

    #[test]
    fn one_workloads_rules_on_headers_are_nothing_to_the_calls_of_another() {
        let text = "[[workload]]\nname='a'\n[[workload.allow]]\nhost='a.b'\nheaders={x-a='1'}\n\
                    [[workload]]\nname='b'\n[[workload.allow]]\nhost='a.b'\n";
        let policy = Policy::compile(&[Source::new("a.toml", text)]).unwrap();
        let enforced = Enforced::new(policy, 1);
        let needs = ["a", "b", "c"].map(|name| enforced.needs_headers(&WorkloadName::parse(name).unwrap()));
        assert_eq!(needs, [true, false, false]);
    }
}
