//! decide() and route(): pure, deny wins, default deny.

use std::cmp::Reverse;
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

/// Only refused calls pay for a reason: the nearest that an allow for the host came.
fn why_not(workload: &Workload, call: &Call<'_>) -> Denial {
    let authority = call.authority;
    let unnamed = |reason| Denial { reason, rule: None };
    if tunnels(workload, &authority.host, authority.port)
        .next()
        .is_some()
    {
        return unnamed(DenialReason::CallerNotAllowed);
    }
    if let Some(denial) = nearest_by_path(workload, call) {
        return denial;
    }
    let by_host = workload.index.allows(&authority.host).into_iter().flatten();
    let origins: Vec<_> = by_host.flat_map(ByPath::origins).collect();
    if origins.contains(&&(Some(authority.port), Some(call.scheme))) {
        unnamed(DenialReason::CallNotAllowed)
    } else if call.scheme == Scheme::Http && origins.iter().any(|(_, scheme)| *scheme == Some(Scheme::Https))
    {
        unnamed(DenialReason::PlainHttp)
    } else {
        unnamed(DenialReason::HostNotAllowed)
    }
}

/// The first by label of the allows for this authority and path, those that lack only the caller before others.
fn nearest_by_path(workload: &Workload, call: &Call<'_>) -> Option<Denial> {
    let mut nearest = None;
    for by_path in workload.index.allows(&call.authority.host).into_iter().flatten() {
        by_path.narrow(call.path, &mut |id| {
            if let Some(rule) = workload.rules.get(id).filter(|rule| rule.is_at(call)) {
                nearest = nearest.max(Some((rule.allows(call), Reverse(id))));
            }
            false
        });
    }
    let (lacks_only_the_caller, Reverse(id)) = nearest?;
    Some(Denial {
        reason: if lacks_only_the_caller {
            DenialReason::CallerNotAllowed
        } else {
            DenialReason::CallNotAllowed
        },
        rule: workload.rules.get(id).map(|rule| Arc::clone(&rule.label)),
    })
}

/// Whether an allow or a deny names the flow's host and port: then its calls must be read.
fn reads_calls(workload: &Workload, identity: &Identity, flow: &Flow<'_>) -> bool {
    let origin = (Some(flow.port), Some(flow.scheme));
    let mut allows = workload.index.allows(flow.host).into_iter().flatten();
    let mut reads = allows.any(|by_path| by_path.origins().contains(&origin));
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
        self.is_at(call)
            && (self.methods.is_empty() || self.methods.iter().any(|method| **method == *call.method))
            && self.headers.iter().all(|header| header.matches(call.headers))
            && self.query.iter().all(|key| key.matches(call.query))
    }

    /// As an allow: port and scheme alone.
    fn is_at(&self, call: &Call<'_>) -> bool {
        self.port == Some(call.authority.port) && self.scheme == Some(call.scheme)
    }

    /// As a deny: all but host, path and caller.
    fn denies(&self, call: &Call<'_>) -> bool {
        self.port.is_none_or(|port| port == call.authority.port)
            && self.scheme.is_none_or(|scheme| scheme == call.scheme)
            && (self.methods.is_empty() || self.methods.iter().any(|method| covers(method, call.method)))
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

/// Whether a deny of the method is one of the call's: in any letter case, and `GET` for `HEAD`, which tells all of a GET's
/// answer but its body (RFC 9110 section 9.3.2), and which servers have the same code answer.
fn covers(denied: &str, method: &str) -> bool {
    denied.eq_ignore_ascii_case(method)
        || (denied.eq_ignore_ascii_case("GET") && method.eq_ignore_ascii_case("HEAD"))
}
