//! decide() and route(): pure, deny wins, default deny.

use std::sync::Arc;

use super::index::ByPath;
use super::model::{Mode, Policy, Rule, Workload};
use super::path::rank_of;
use super::{Call, ClientAuth, Decision, Denial, DenialReason, Flow, Permit, Route, Scheme};
use crate::addr::{Authority, HostName};
use crate::identity::Identity;

/// What to do with a connection before any HTTP is read. All but a tunnel is intercepted, so that a refusal
/// can be said in the client's own protocol by [`decide`].
///
/// A rule that reads calls (an allow or a deny) for the same host and port beats a tunnel.
///
/// # Errors
/// If the workload is not in the policy.
pub fn route(policy: &Policy, identity: &Identity, flow: &Flow<'_>) -> Result<Route, Denial> {
    let workload = policy.workload(&identity.workload).ok_or(UNKNOWN_WORKLOAD)?;
    if flow.scheme == Scheme::Http
        || !workload.conditions.hold(identity).for_allow()
        || reads_calls(workload, identity, flow)
    {
        return Ok(Route::Intercept);
    }
    let tunnel =
        tunnels(workload, flow.host, flow.port).find(|rule| rule.conditions.hold(identity).for_allow());
    let authority = Authority::new(flow.host.clone(), flow.port);
    Ok(tunnel.map_or(Route::Intercept, |rule| {
        Route::Tunnel(permit(workload, rule, authority, flow.scheme))
    }))
}

/// Whether this call may go out.
#[must_use]
pub fn decide(policy: &Policy, identity: &Identity, call: &Call<'_>) -> Decision {
    let Some(workload) = policy.workload(&identity.workload) else {
        return Decision::Deny(UNKNOWN_WORKLOAD);
    };
    match verdict(workload, identity, call) {
        Ok(rule) => Decision::Allow(permit(workload, rule, call.authority.clone(), call.scheme)),
        Err(denial) if workload.mode == Mode::Observe => Decision::Allow(observed(workload, call, denial)),
        Err(denial) => Decision::Deny(denial),
    }
}

const UNKNOWN_WORKLOAD: Denial = Denial {
    reason: DenialReason::UnknownWorkload,
    rule: None,
};

fn verdict<'w>(workload: &'w Workload, identity: &Identity, call: &Call<'_>) -> Result<&'w Rule, Denial> {
    if !workload.conditions.hold(identity).for_allow() {
        return Err(Denial {
            reason: DenialReason::NotThisWorkload,
            rule: None,
        });
    }
    if let Some(rule) = denying(workload, identity, call) {
        return Err(Denial {
            reason: DenialReason::DenyRule,
            rule: Some(Arc::clone(&rule.label)),
        });
    }
    allowing(workload, identity, call).ok_or_else(|| why_not(workload, call))
}

/// The first by label of the denies that match.
fn denying<'w>(workload: &'w Workload, identity: &Identity, call: &Call<'_>) -> Option<&'w Rule> {
    let mut first = usize::MAX;
    for by_path in workload.index.denies(&call.authority.host) {
        by_path.wide(call.path, &mut |id| {
            let matches = |rule: &Rule| rule.denies(call) && rule.conditions.hold(identity).for_deny();
            if id < first && workload.rules.get(id).is_some_and(matches) {
                first = id;
            }
        });
    }
    workload.rules.get(first)
}

/// The allow with the most specific path; of two that tie, the one that names the host exactly.
fn allowing<'w>(workload: &'w Workload, identity: &Identity, call: &Call<'_>) -> Option<&'w Rule> {
    let first = |by_path: &ByPath| {
        let mut found = None;
        by_path.narrow(call.path, &mut |id| {
            found = workload
                .rules
                .get(id)
                .filter(|rule| rule.allows(call) && rule.conditions.hold(identity).for_allow());
            found.is_some()
        });
        found
    };
    let [exact, below] = workload.index.allows(&call.authority.host);
    match (exact.and_then(first), below.and_then(first)) {
        (Some(exact), Some(below)) if below.rank(call) < exact.rank(call) => Some(below),
        (exact, below) => exact.or(below),
    }
}

/// Only refused calls pay for a reason.
fn why_not(workload: &Workload, call: &Call<'_>) -> Denial {
    let authority = call.authority;
    let mut best: Option<(u8, usize)> = None;
    let mut note = |level: u8, id: usize| {
        let nearer = best.is_none_or(|(level_so_far, id_so_far)| {
            level > level_so_far || (level == level_so_far && id < id_so_far)
        });
        if nearer {
            best = Some((level, id));
        }
    };
    for by_path in workload.index.allows(&authority.host).into_iter().flatten() {
        by_path.all(&mut |id| {
            if let Some(rule) = workload.rules.get(id) {
                note(nearness(rule, call), id);
            }
        });
    }
    if tunnels(workload, &authority.host, authority.port)
        .next()
        .is_some()
    {
        return Denial {
            reason: DenialReason::CallerNotAllowed,
            rule: None,
        };
    }
    let (level, id) = best.unwrap_or_default();
    let label = || workload.rules.get(id).map(|rule| Arc::clone(&rule.label));
    match level {
        0 => Denial {
            reason: DenialReason::HostNotAllowed,
            rule: None,
        },
        1 => Denial {
            reason: DenialReason::PlainHttp,
            rule: None,
        },
        2 => Denial {
            reason: DenialReason::CallNotAllowed,
            rule: None,
        },
        3 => Denial {
            reason: DenialReason::CallNotAllowed,
            rule: label(),
        },
        _ => Denial {
            reason: DenialReason::CallerNotAllowed,
            rule: label(),
        },
    }
}

/// How near an allow for the host came: 0 other port or scheme, 1 only the scheme is plain, 2 the
/// authority, 3 the path too, 4 everything but the caller.
fn nearness(rule: &Rule, call: &Call<'_>) -> u8 {
    if rule.port.is_some_and(|port| port != call.authority.port) && call.scheme == Scheme::Https {
        return 0;
    }
    if rule.scheme != Some(call.scheme) {
        return u8::from(call.scheme == Scheme::Http);
    }
    if rule.port != Some(call.authority.port) {
        return 0;
    }
    if !rule.paths.is_empty() && !rule.paths.iter().any(|path| path.matches(call.path)) {
        return 2;
    }
    if rule.allows(call) { 4 } else { 3 }
}

/// Whether an allow or a deny names the flow's host and port: then its calls must be read.
fn reads_calls(workload: &Workload, identity: &Identity, flow: &Flow<'_>) -> bool {
    let mut reads = false;
    for by_path in workload.index.allows(flow.host).into_iter().flatten() {
        by_path.all(&mut |id| {
            let names = |rule: &Rule| rule.port == Some(flow.port) && rule.scheme == Some(flow.scheme);
            reads |= workload.rules.get(id).is_some_and(names);
        });
    }
    for by_path in workload.index.denies(flow.host) {
        by_path.all(&mut |id| {
            let names = |rule: &Rule| {
                rule.port.is_none_or(|port| port == flow.port)
                    && rule.scheme.is_none_or(|scheme| scheme == flow.scheme)
                    && rule.conditions.hold(identity).for_deny()
            };
            reads |= workload.rules.get(id).is_some_and(names);
        });
    }
    reads
}

fn tunnels<'w>(workload: &'w Workload, host: &HostName, port: u16) -> impl Iterator<Item = &'w Rule> {
    let rules = workload
        .index
        .tunnels(host)
        .filter_map(|id| workload.rules.get(id));
    rules.filter(move |rule| rule.port == Some(port))
}

fn permit(workload: &Workload, rule: &Rule, authority: Authority, scheme: Scheme) -> Permit {
    Permit {
        workload: workload.name.clone(),
        authority,
        scheme,
        rule: Some(Arc::clone(&rule.label)),
        credential: rule.credential.clone(),
        client_auth: rule.client_auth,
        private: rule.private,
        observed: None,
    }
}

/// What `observe` lets through goes out as the client sent it: no credential of ours, its own left on. It
/// may not reach private addresses: there the agent would be a way to where the client itself can't go.
fn observed(workload: &Workload, call: &Call<'_>, denial: Denial) -> Permit {
    Permit {
        workload: workload.name.clone(),
        authority: call.authority.clone(),
        scheme: call.scheme,
        rule: None,
        credential: None,
        client_auth: ClientAuth::Pass,
        private: false,
        observed: Some(denial),
    }
}

impl Rule {
    /// As an allow: all but host, path and caller, which the index and the conditions answer.
    fn allows(&self, call: &Call<'_>) -> bool {
        self.port == Some(call.authority.port)
            && self.scheme == Some(call.scheme)
            && (self.methods.is_empty() || self.methods.iter().any(|method| **method == *call.method))
            && self.headers.iter().all(|header| header.matches(call.headers))
            && self.query.iter().all(|key| key.matches(call.query))
    }

    /// As a deny: all but host, path and caller.
    fn denies(&self, call: &Call<'_>) -> bool {
        self.port.is_none_or(|port| port == call.authority.port)
            && self.scheme.is_none_or(|scheme| scheme == call.scheme)
            && (self.methods.is_empty()
                || self
                    .methods
                    .iter()
                    .any(|method| method.eq_ignore_ascii_case(call.method)))
            && self
                .headers
                .iter()
                .all(|header| header.matches_wider(call.headers))
            && self.query.iter().all(|key| key.matches_wider(call.query))
    }

    /// How specific its best matching path is; less is more.
    fn rank(&self, call: &Call<'_>) -> Vec<u8> {
        let matching = self.paths.iter().filter(|path| path.matches(call.path));
        matching
            .map(|path| rank_of(path.segments()))
            .min()
            .unwrap_or_else(|| vec![u8::MAX])
    }
}
