//! From all files together to one policy: names used twice, credentials that don't fit, rules that
//! contradict each other. Order of files and rules never shows in the result.

mod overlap;

use std::collections::BTreeMap;

use super::diagnostic::{Diagnostic, Severity, Source};
use super::index::Index;
use super::matcher::HostPattern;
use super::model::{Mode, Policy, Rule, RuleKind, Workload};
use super::parse::{ParsedCredential, parse};
use super::path::{Segment, Template};
use super::{CredentialName, reader};
use crate::addr::Authority;
use crate::credential::spec::{CredentialSpec, HostScope};
use crate::identity::{Sha256, WorkloadName};

pub(super) fn compile(sources: &[Source]) -> Result<Policy, Vec<Diagnostic>> {
    let mut found = Vec::new();
    let (mut workloads, mut credentials) = (Vec::new(), Vec::new());
    for source in sources {
        let file = parse(source);
        found.extend(file.found);
        workloads.extend(file.workloads);
        credentials.extend(file.credentials);
    }
    let credentials = unique_credentials(credentials, &mut found);
    for workload in &workloads {
        check_workload(workload, &credentials, &mut found);
    }
    let mut workloads = unique_workloads(workloads, &mut found);
    found.sort();
    found.dedup();
    if found
        .iter()
        .any(|diagnostic| diagnostic.severity == Severity::Error)
    {
        return Err(found);
    }
    for workload in workloads.values_mut() {
        workload.index = Index::new(&workload.rules);
    }
    let credentials = credentials
        .into_iter()
        .filter_map(|(name, parsed)| Some((name, parsed.spec?)))
        .collect();
    Ok(Policy {
        workloads,
        credentials,
        warnings: found,
        digest: digest(sources),
    })
}

/// Over the texts sorted, each with its length before it, so that neither names nor order count.
fn digest(sources: &[Source]) -> Sha256 {
    let mut texts: Vec<&str> = sources.iter().map(|source| &*source.text).collect();
    texts.sort_unstable();
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    for text in texts {
        context.update(&u64::try_from(text.len()).unwrap_or(u64::MAX).to_be_bytes());
        context.update(text.as_bytes());
    }
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.finish().as_ref());
    Sha256(bytes)
}

fn unique_workloads(all: Vec<Workload>, found: &mut Vec<Diagnostic>) -> BTreeMap<WorkloadName, Workload> {
    let mut by_name: BTreeMap<WorkloadName, Workload> = BTreeMap::new();
    for workload in all {
        if let Some(first) = by_name.get(&workload.name) {
            let message = format!("the workload `{}` is defined twice", workload.name);
            let finding = Diagnostic::error(&workload.place.source, workload.place.span, message)
                .related(&first.place.source, first.place.span, "first defined here")
                .help("put all its rules into one place, so that one look shows what it may do");
            found.push(finding);
        } else {
            by_name.insert(workload.name.clone(), workload);
        }
    }
    by_name
}

type Credentials = BTreeMap<CredentialName, ParsedCredential>;

fn unique_credentials(all: Vec<ParsedCredential>, found: &mut Vec<Diagnostic>) -> Credentials {
    let mut by_name = Credentials::new();
    for credential in all {
        if let Some(first) = by_name.get(&credential.name) {
            let message = format!("the credential `{}` is defined twice", credential.name);
            let finding = Diagnostic::error(&credential.source, credential.span, message);
            found.push(finding.related(&first.source, first.span, "first defined here"));
        } else {
            by_name.insert(credential.name.clone(), credential);
        }
    }
    by_name
}

fn check_workload(workload: &Workload, credentials: &Credentials, found: &mut Vec<Diagnostic>) {
    for rule in &workload.rules {
        check_credential(rule, credentials, found);
        check_path_says_something(rule, found);
    }
    check_rule_names(workload, found);
    check_direct(workload, found);
    overlap::check(workload, found);
    if workload.mode == Mode::Observe {
        let message = format!(
            "the workload `{}` only observes: what no rule allows goes out all the same",
            workload.name
        );
        found.push(Diagnostic::warning(
            &workload.place.source,
            workload.place.span,
            message,
        ));
    }
}

/// Labels that were made from the content may repeat; given names may not.
fn check_rule_names(workload: &Workload, found: &mut Vec<Diagnostic>) {
    for pair in workload.rules.windows(2) {
        let [a, b] = pair else { continue };
        // A made label has a space in it, a given name has none.
        if a.label == b.label && !a.label.contains(' ') {
            let (first, second) = if a.place.span <= b.place.span {
                (a, b)
            } else {
                (b, a)
            };
            let message = format!(
                "two rules of the workload `{}` are named `{}`",
                workload.name, a.label
            );
            let finding = Diagnostic::error(&second.place.source, second.place.span, message);
            found.push(finding.related(&first.place.source, first.place.span, "the other one"));
        }
    }
}

fn check_credential(rule: &Rule, credentials: &Credentials, found: &mut Vec<Diagnostic>) {
    let (Some(name), Some(port)) = (&rule.credential, rule.port) else {
        return;
    };
    let at = &rule.place;
    let Some(parsed) = credentials.get(name) else {
        let finding = Diagnostic::error(
            &at.source,
            at.credential,
            format!("no credential `{name}` is defined"),
        );
        let names = credentials.keys().map(CredentialName::as_str);
        found.push(finding.help(match reader::nearest(name.as_str(), names) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("define it as [credential.{name}]"),
        }));
        return;
    };
    let Some(spec) = &parsed.spec else { return };
    let Some(problem) = uncovered(rule, port, spec) else {
        return;
    };
    let scopes: Vec<String> = spec.hosts.iter().map(ToString::to_string).collect();
    let message = format!("the credential `{name}` may not be sent to {problem}");
    let finding = Diagnostic::error(&at.source, at.credential, message)
        .label("used here")
        .related(
            &parsed.source,
            parsed.span,
            format!("good for {} only", scopes.join(", ")),
        )
        .help("narrow the rule, or add the host to the credential's `hosts` if it belongs there");
    found.push(finding);
}

/// What of the rule lies outside the credential's hosts.
fn uncovered(rule: &Rule, port: u16, spec: &CredentialSpec) -> Option<String> {
    let host = match rule.host.as_ref()? {
        HostPattern::Below(name) => return Some(format!("every name that *.{name} stands for")),
        HostPattern::Exact(host) => host,
    };
    let authority = Authority::new(host.clone(), port);
    let scopes: Vec<&HostScope> = spec
        .hosts
        .iter()
        .filter(|scope| scope.authority == authority)
        .collect();
    if scopes.is_empty() {
        return Some(authority.to_string());
    }
    if scopes.iter().any(|scope| scope.path_prefix.is_none()) {
        return None;
    }
    let inside = |path: &Template| scopes.iter().any(|scope| within_prefix(path, scope));
    if rule.paths.is_empty() {
        return Some(format!("every path of {authority}"));
    }
    rule.paths
        .iter()
        .find(|path| !inside(path))
        .map(|path| format!("{authority}{path}"))
}

/// Whether all that the template matches starts with the scope's prefix.
fn within_prefix(path: &Template, scope: &HostScope) -> bool {
    let prefix = scope.path_prefix.as_deref().unwrap_or("");
    let mut segments = path.segments().iter();
    prefix.split('/').skip(1).all(|part| match segments.next() {
        Some(Segment::Literal(text)) => **text == *part,
        Some(Segment::One | Segment::Rest) | None => false,
    })
}

/// APIs whose calls are all `POST /` (AWS JSON, JSON-RPC) say in a header or the body what they do.
fn check_path_says_something(rule: &Rule, found: &mut Vec<Diagnostic>) {
    let root_only = !rule.paths.is_empty() && rule.paths.iter().all(|path| path.as_str() == "/");
    let posts = rule.methods.is_empty() || rule.methods.iter().any(|method| &**method == "POST");
    if rule.kind == RuleKind::Allow && root_only && posts && rule.headers.is_empty() && rule.query.is_empty()
    {
        let message = "this rule allows `POST /`: where every call is one, that allows all of them";
        let finding = Diagnostic::warning(&rule.place.source, rule.place.span, message);
        found.push(finding.help("say which calls are meant by `headers` or `query`, like headers = { x-amz-target = \"DynamoDB_20120810.GetItem\" }"));
    }
}

/// The kernel sees addresses only: whether a network holds a credentialed host's address can't be known here.
fn check_direct(workload: &Workload, found: &mut Vec<Diagnostic>) {
    for direct in &workload.direct {
        let covered = workload
            .rules
            .iter()
            .find(|rule| rule.credential.is_some() && rule.port == Some(direct.port));
        if let (Some(rule), Some(host)) = (covered, covered.and_then(|rule| rule.host.as_ref())) {
            let message = format!(
                "the direct rule for {} port {} goes past the rule `{}`",
                direct.cidr, direct.port, rule.label
            );
            let finding = Diagnostic::warning(&workload.place.source, workload.place.span, message)
                .related(
                    &rule.place.source,
                    rule.place.span,
                    "this rule puts a credential on",
                )
                .help(format!(
                    "if {host} has an address in {}, calls to it are neither checked nor recorded",
                    direct.cidr
                ));
            found.push(finding);
        }
    }
}
