//! Two rules that one call could meet and that nothing ranks: they must not say different things.

use std::collections::BTreeMap;

use super::super::diagnostic::Diagnostic;
use super::super::matcher::HostPattern;
use super::super::model::{Rule, RuleKind, Workload};
use super::super::path::rank_of;

/// Where two allows can tie: same port and scheme, same host pattern, same kinds of segments.
type Tie<'r> = (Option<u16>, bool, Option<&'r HostPattern>, Vec<u8>, Vec<&'r str>);

/// Reports allows that tie with different effects, and tunnels that an allow or deny keeps from ever applying.
pub(super) fn check(workload: &Workload, found: &mut Vec<Diagnostic>) {
    check_ties(workload, found);
    check_tunnels(workload, found);
}

/// Two templates tie on a path only if they are the same but for the placeholders' names, so a map by that
/// form finds all pairs without comparing each with each.
fn check_ties(workload: &Workload, found: &mut Vec<Diagnostic>) {
    let mut seen: BTreeMap<Tie<'_>, Vec<&Rule>> = BTreeMap::new();
    for rule in workload.rules.iter().filter(|rule| rule.kind == RuleKind::Allow) {
        let mut ties: Vec<Tie<'_>> = tie_keys(rule).collect();
        ties.sort();
        ties.dedup();
        for key in ties {
            seen.entry(key).or_default().push(rule);
        }
    }
    for rules in seen.values() {
        for (at, rule) in rules.iter().enumerate() {
            let others = rules.iter().skip(at + 1);
            // One finding a rule is enough to act on, and keeps a thousand equal rules from a million findings.
            if let Some(other) = others
                .into_iter()
                .find(|other| differ(rule, other) && can_meet(rule, other))
            {
                found.push(tie(rule, other));
            }
        }
    }
}

fn literal(segment: &super::Segment) -> Option<&str> {
    match segment {
        super::Segment::Literal(text) => Some(text),
        super::Segment::One | super::Segment::Rest => None,
    }
}

fn tie_keys(rule: &Rule) -> impl Iterator<Item = Tie<'_>> {
    let key = move |rank, literals| {
        let https = rule.scheme == Some(super::super::Scheme::Https);
        (rule.port, https, rule.host.as_ref(), rank, literals)
    };
    let of_paths = rule.paths.iter().map(move |path| {
        let segments = path.segments();
        key(rank_of(segments), segments.iter().filter_map(literal).collect())
    });
    let any_path = rule.paths.is_empty().then(|| key(vec![u8::MAX], Vec::new()));
    of_paths.chain(any_path)
}

fn differ(a: &Rule, b: &Rule) -> bool {
    a.credential != b.credential || a.client_auth != b.client_auth || a.private != b.private
}

/// Whether one call of one caller could meet both, as far as the texts show.
fn can_meet(a: &Rule, b: &Rule) -> bool {
    let methods =
        a.methods.is_empty() || b.methods.is_empty() || a.methods.iter().any(|m| b.methods.contains(m));
    let headers = a.headers.iter().all(|x| !b.headers.iter().any(|y| x.excludes(y)));
    let query = a.query.iter().all(|x| !b.query.iter().any(|y| x.excludes(y)));
    methods && headers && query && !a.conditions.exclude(&b.conditions)
}

fn tie(a: &Rule, b: &Rule) -> Diagnostic {
    let ((file_a, _), (file_b, _)) = (a.written_at(), b.written_at());
    let (first, second) = if (file_a, a.place.span) <= (file_b, b.place.span) {
        (a, b)
    } else {
        (b, a)
    };
    let what = if a.credential != b.credential {
        "name different credentials"
    } else {
        "differ in `client_auth` or `private`"
    };
    let place = if a.credential == b.credential {
        second.place.span
    } else {
        second.place.credential
    };
    let message = format!(
        "the allows `{}` and `{}` can match the same call and {what}",
        first.label, second.label
    );
    let other = if a.credential == b.credential {
        first.place.span
    } else {
        first.place.credential
    };
    Diagnostic::error(&second.place.source, place, message)
        .label("this one")
        .related(&first.place.source, other, "and this one")
        .help("no order decides between rules: make one path more specific, or tell them apart by method, header or caller")
}

fn check_tunnels(workload: &Workload, found: &mut Vec<Diagnostic>) {
    let tunnels = workload.rules.iter().filter(|rule| rule.kind == RuleKind::Tunnel);
    for tunnel in tunnels {
        let Some(host) = &tunnel.host else { continue };
        let reader = workload.rules.iter().find(|rule| match rule.kind {
            RuleKind::Tunnel => false,
            RuleKind::Allow => {
                let same_flow = rule.port == tunnel.port && rule.scheme == tunnel.scheme;
                same_flow && rule.host.as_ref().is_some_and(|other| other.overlaps(host))
            }
            RuleKind::Deny => beats(rule, tunnel, host),
        });
        if let Some(rule) = reader {
            found.push(beaten(tunnel, rule, host));
        }
    }
}

/// Whether a deny covers all that the tunnel names; one that takes out single names of a wildcard is fine.
fn beats(deny: &Rule, tunnel: &Rule, host: &HostPattern) -> bool {
    let same_flow = (deny.port.is_none() || deny.port == tunnel.port)
        && (deny.scheme.is_none() || deny.scheme == tunnel.scheme)
        && deny.conditions.is_empty();
    same_flow
        && match (&deny.host, host) {
            (None, _) => true,
            (Some(pattern), HostPattern::Exact(name)) => pattern.matches_wider(name),
            (Some(pattern), HostPattern::Below(name)) => match pattern {
                HostPattern::Below(parent) => parent == name || pattern.matches_wider(name),
                HostPattern::Exact(_) => false,
            },
        }
}

fn beaten(tunnel: &Rule, rule: &Rule, host: &HostPattern) -> Diagnostic {
    let message = format!(
        "the tunnel to {host} can't be passed unread: `{}` must read its calls",
        rule.label
    );
    let finding = match rule.kind {
        RuleKind::Allow | RuleKind::Tunnel => {
            Diagnostic::error(&tunnel.place.source, tunnel.place.span, message)
        }
        RuleKind::Deny => Diagnostic::warning(&tunnel.place.source, tunnel.place.span, message),
    };
    finding
        .related(&rule.place.source, rule.place.span, "this rule")
        .help("have the host in one of the two; an allow or deny always wins over a tunnel")
}
