//! Why a call is decided as it is: every rule of the workload, and what in it did not match.
//!
//! The answer itself is the engine's own, so that what is explained is what happens.

use std::fmt;
use std::sync::Arc;

use super::matcher::Holds;
use super::model::{Policy, Rule, RuleKind, Workload};
use super::{Call, Decision, decide};
use crate::identity::Identity;

/// A decision and the way to it.
#[derive(Debug)]
pub struct Explanation {
    /// The engine's answer.
    pub decision: Decision,
    /// What of the workload's own conditions the caller does not meet: the policy's key, and whether the
    /// fact is unknown.
    pub caller: Option<(&'static str, Holds)>,
    /// Every rule, in the order of labels.
    pub considered: Vec<Considered>,
}

/// One rule and how it fared.
#[derive(Debug)]
pub struct Considered {
    /// What it does.
    pub kind: RuleKind,
    /// Its name.
    pub label: Arc<str>,
    /// The file that it is in.
    pub file: Arc<str>,
    /// The line there, from 1.
    pub line: usize,
    /// What kept it from matching; `None` if it matched.
    pub miss: Option<Miss>,
}

/// The first thing in a rule that did not match, in the order of the variants.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Miss {
    /// Another host.
    Host,
    /// Another port.
    Port,
    /// TLS where the rule says plain, or the other way.
    Scheme,
    /// It passes TLS unread, which an allow or deny for the host does not let it.
    Tunnel,
    /// Another path.
    Path,
    /// Another method.
    Method,
    /// This query key, by its place in the rule.
    Query(usize),
    /// This header, by its place in the rule.
    Header(usize),
    /// A condition on the caller, by its key; the fact is known.
    Caller(&'static str),
    /// A condition on the caller, by its key; the fact is not known.
    Unknown(&'static str),
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("other host"),
            Self::Port => f.write_str("other port"),
            Self::Scheme => f.write_str("other scheme"),
            Self::Tunnel => f.write_str("a tunnel decides on connections, not calls"),
            Self::Path => f.write_str("path not covered"),
            Self::Method => f.write_str("method not listed"),
            Self::Query(_) => f.write_str("query does not match"),
            Self::Header(_) => f.write_str("headers do not match"),
            Self::Caller(key) => write!(f, "caller does not meet `{key}`"),
            Self::Unknown(key) => write!(f, "`{key}` of the caller is unknown"),
        }
    }
}

/// Decides, and says how every rule fared. `None` if the workload is not in the policy.
#[must_use]
pub fn explain(policy: &Policy, identity: &Identity, call: &Call<'_>) -> Option<Explanation> {
    let workload = policy.workload(&identity.workload)?;
    Some(Explanation {
        decision: decide(policy, identity, call),
        caller: workload.conditions.by_name(identity),
        considered: consider(workload, identity, call),
    })
}

fn consider(workload: &Workload, identity: &Identity, call: &Call<'_>) -> Vec<Considered> {
    let considered = workload.rules.iter().map(|rule| {
        let (file, line) = rule.written_at();
        Considered {
            kind: rule.kind,
            label: Arc::clone(&rule.label),
            file,
            line,
            miss: miss(rule, identity, call),
        }
    });
    considered.collect()
}

/// What keeps a rule from matching a call. Written apart from the engine, rule by rule and without an index.
#[must_use]
pub fn miss(rule: &Rule, identity: &Identity, call: &Call<'_>) -> Option<Miss> {
    let wide = rule.kind == RuleKind::Deny;
    let host = |pattern: &super::matcher::HostPattern| {
        if wide {
            pattern.matches_wider(&call.authority.host)
        } else {
            pattern.matches(&call.authority.host)
        }
    };
    if !rule.host.as_ref().is_none_or(host) {
        return Some(Miss::Host);
    }
    if rule.port.is_some_and(|port| port != call.authority.port) {
        return Some(Miss::Port);
    }
    if rule.scheme.is_some_and(|scheme| scheme != call.scheme) {
        return Some(Miss::Scheme);
    }
    if rule.kind == RuleKind::Tunnel {
        return Some(Miss::Tunnel);
    }
    request_miss(rule, call, wide).or_else(|| caller_miss(rule, identity, wide))
}

fn request_miss(rule: &Rule, call: &Call<'_>, wide: bool) -> Option<Miss> {
    let path = |template: &super::path::Template| {
        if wide {
            template.matches_wider(call.path)
        } else {
            template.matches(call.path)
        }
    };
    if !rule.paths.is_empty() && !rule.paths.iter().any(path) {
        return Some(Miss::Path);
    }
    let method = |listed: &str| {
        let asked = [
            call.method,
            if call.method.eq_ignore_ascii_case("HEAD") {
                "GET"
            } else {
                call.method
            },
        ];
        listed == call.method || (wide && asked.iter().any(|method| method.eq_ignore_ascii_case(listed)))
    };
    if !rule.methods.is_empty() && !rule.methods.iter().any(|listed| method(listed)) {
        return Some(Miss::Method);
    }
    let query = |key: &super::matcher::ValueMatcher<Box<str>>| {
        if wide {
            key.matches_wider(call.query)
        } else {
            key.matches(call.query)
        }
    };
    if let Some(at) = rule.query.iter().position(|key| !query(key)) {
        return Some(Miss::Query(at));
    }
    let header = |header: &super::matcher::ValueMatcher<http::HeaderName>| {
        if wide {
            header.matches_wider(call.headers)
        } else {
            header.matches(call.headers)
        }
    };
    rule.headers
        .iter()
        .position(|name| !header(name))
        .map(Miss::Header)
}

fn caller_miss(rule: &Rule, identity: &Identity, wide: bool) -> Option<Miss> {
    let (key, holds) = rule.conditions.by_name(identity)?;
    match holds {
        Holds::Yes => None,
        Holds::No => Some(Miss::Caller(key)),
        Holds::Unknown => (!wide).then_some(Miss::Unknown(key)),
    }
}
