//! `[[workload.allow]]`, `[[workload.deny]]`, `[[workload.tunnel]]`.

use http::header::HeaderName;
use toml_span::value::Value;

use super::super::diagnostic::Diagnostic;
use super::super::matcher::{Glob, HostPattern, ValueMatcher};
use super::super::model::{Place, Rule, RuleKind};
use super::super::path::{Template, TemplateError};
use super::super::reader::{Fields, Report, Spanned, nearest, text_of};
use super::super::{ClientAuth, CredentialName, Scheme};
use super::workload::conditions;
use crate::addr::HostNameError;

/// What goes there is taken for questions about names, whatever it is.
const DNS: u16 = 53;

/// Reads one rule. `None` if it has no usable host or nothing that it says; its faults are reported.
pub(super) fn parse(report: &mut Report<'_>, value: &Value<'_>, kind: RuleKind) -> Option<Rule> {
    let before = report.found.len();
    let what = match kind {
        RuleKind::Allow => "an allow rule",
        RuleKind::Deny => "a deny rule",
        RuleKind::Tunnel => "a tunnel rule",
    };
    let mut fields = Fields::of(report, value, what)?;
    let name = name(report, &mut fields);
    let host = host(report, &mut fields, kind);
    let mut rule = Rule {
        kind,
        label: "".into(),
        host,
        port: None,
        scheme: None,
        methods: Vec::new(),
        paths: Vec::new(),
        query: Vec::new(),
        headers: Vec::new(),
        conditions: conditions(report, &mut fields),
        credential: None,
        client_auth: ClientAuth::Strip,
        private: false,
        place: Place {
            source: report.source.clone(),
            span: fields.span,
            credential: fields.span,
        },
    };
    if kind == RuleKind::Tunnel {
        rule.scheme = Some(Scheme::Https);
    } else {
        rule.scheme = scheme(report, &mut fields, kind);
        call_matchers(report, &mut fields, &mut rule);
    }
    if kind != RuleKind::Deny {
        rule.private = fields.boolean(report, "private").unwrap_or(false);
    }
    if kind == RuleKind::Allow {
        credential(report, &mut fields, &mut rule);
    }
    port(report, &mut fields, &mut rule);
    check_deny(report, &fields, &rule, before);
    rule.label = name.map_or_else(|| describe(&rule).into(), Into::into);
    fields.finish_with(report, |key| advice(kind, key));
    (rule.host.is_some() || kind == RuleKind::Deny).then_some(rule)
}

fn advice(kind: RuleKind, key: &str) -> Option<&'static str> {
    match (kind, key) {
        (RuleKind::Tunnel, "credential") => {
            Some("a tunnel is passed unread, so nothing can be put on: use an allow")
        }
        (RuleKind::Tunnel, "paths" | "methods" | "headers" | "query") => {
            Some("a tunnel is passed unread, so its calls can't be seen: use an allow")
        }
        (RuleKind::Deny, "credential" | "private" | "client_auth") => Some("a deny lets nothing out"),
        (_, "path") => Some("did you mean `paths`? it takes one template or a list"),
        (_, "method") => Some("did you mean `methods`? it takes one method or a list"),
        (_, "hosts") => Some("did you mean `host`? a rule names one host, or *.example.com"),
        (_, "unit") => Some("did you mean `units`?"),
        _ => None,
    }
}

fn name<'v>(report: &mut Report<'_>, fields: &mut Fields<'v, '_>) -> Option<&'v str> {
    let text = fields.string(report, "name")?;
    let plain = |c: char| c.is_ascii_graphic() && c != '"';
    if text.value.is_empty() || text.value.len() > 64 || !text.value.chars().all(plain) {
        report.error(
            text.span,
            "a rule's name is 1 to 64 visible ASCII characters without spaces and quotes",
        );
        return None;
    }
    Some(text.value)
}

fn host(report: &mut Report<'_>, fields: &mut Fields<'_, '_>, kind: RuleKind) -> Option<HostPattern> {
    let text = match kind {
        RuleKind::Deny => fields.string(report, "host"),
        RuleKind::Allow | RuleKind::Tunnel => fields.required(report, "host"),
    }?;
    let error = match HostPattern::parse(text.value) {
        Ok(HostPattern::Below(name)) if !name.as_str().contains('.') && kind != RuleKind::Deny => {
            let message = format!("\"*.{name}\" is every name of a whole top-level domain");
            report.error_help(
                text.span,
                message,
                "name at least two labels after the star, like *.example.com",
            );
            return None;
        }
        Ok(pattern) => return Some(pattern),
        Err(error) => error,
    };
    let finding = Diagnostic::error(report.source, text.span, format!("`host`: {error}"));
    report.found.push(match host_help(text.value, error) {
        Some(help) => finding.help(help),
        None => finding,
    });
    None
}

fn host_help(text: &str, error: HostNameError) -> Option<String> {
    let bare = text.split_once("://").map_or(text, |(_, rest)| rest);
    if bare.len() < text.len() || bare.contains('/') {
        let host = bare.split('/').next().unwrap_or(bare);
        return Some(format!(
            "a host is a name alone: host = {host:?}; paths go into `paths`"
        ));
    }
    if let Some((host, port)) = text.rsplit_once(':')
        && port.parse::<u16>().is_ok()
        && !host.contains(':')
    {
        return Some(format!("write it as host = {host:?} and port = {port}"));
    }
    match error {
        HostNameError::IpAddress => {
            Some("for addresses use [[workload.direct]] with `cidr` and `port`".to_owned())
        }
        HostNameError::Label if text.contains('*') => {
            Some("a star stands for the first label alone: *.example.com".to_owned())
        }
        HostNameError::Empty | HostNameError::TooLong | HostNameError::Label => None,
    }
}

fn scheme(report: &mut Report<'_>, fields: &mut Fields<'_, '_>, kind: RuleKind) -> Option<Scheme> {
    let default = (kind != RuleKind::Deny).then_some(Scheme::Https);
    let Some(text) = fields.string(report, "scheme") else {
        return default;
    };
    match text.value {
        "https" => Some(Scheme::Https),
        "http" => Some(Scheme::Http),
        other => {
            report.error(
                text.span,
                format!("`scheme` is \"https\" or \"http\", not {other:?}"),
            );
            default
        }
    }
}

fn port(report: &mut Report<'_>, fields: &mut Fields<'_, '_>, rule: &mut Rule) {
    let default = match (rule.kind, rule.scheme) {
        (RuleKind::Deny, _) => None,
        (_, Some(Scheme::Http)) => Some(80),
        (_, Some(Scheme::Https) | None) => Some(443),
    };
    let port = fields
        .integer(report, "port", 1, 65535)
        .and_then(|port| u16::try_from(port).ok());
    if port == Some(DNS) {
        let span = fields
            .value("port")
            .map_or(fields.span, |value| value.span.into());
        let message = "port 53 is for names, which the agent answers itself";
        report.error_help(
            span,
            message,
            "a host that a rule mentions is answered without one for port 53",
        );
    }
    rule.port = port.or(default);
}

fn call_matchers(report: &mut Report<'_>, fields: &mut Fields<'_, '_>, rule: &mut Rule) {
    for text in fields.strings(report, "methods") {
        rule.methods.extend(method(report, text, rule.kind));
    }
    for text in fields.strings(report, "paths") {
        match Template::parse(text.value) {
            Ok(template) => rule.paths.push(template),
            Err(error) => report.found.push(bad_template(report, text, &error)),
        }
    }
    rule.query = values(report, fields, "query", |_, key| Some(key.value.into()));
    rule.headers = values(report, fields, "headers", |report, key| {
        match key.value.parse::<HeaderName>() {
            Ok(name) => Some(name),
            Err(_) => {
                report.error(key.span, format!("{:?} is no header name", key.value));
                None
            }
        }
    });
}

fn bad_template(report: &Report<'_>, text: Spanned<&str>, error: &TemplateError) -> Diagnostic {
    let finding = Diagnostic::error(report.source, text.span, format!("`paths`: {error}"));
    match error {
        TemplateError::NotNormal { normal } => finding.help(format!("write it as {normal:?}")),
        TemplateError::Path(_) if text.value.contains('?') => {
            finding.help("use `query = { key = \"value\" }`")
        }
        TemplateError::Path(_) if !text.value.starts_with('/') => {
            finding.help(format!("did you mean {:?}?", format!("/{}", text.value)))
        }
        TemplateError::Path(_)
        | TemplateError::Placeholder
        | TemplateError::RestNotLast
        | TemplateError::Star => finding,
    }
}

const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

fn method(report: &mut Report<'_>, text: Spanned<&str>, kind: RuleKind) -> Option<Box<str>> {
    let name = text.value;
    let upper = name.to_ascii_uppercase();
    if matches!(upper.as_str(), "CONNECT" | "TRACE") && kind == RuleKind::Allow {
        report.error(text.span, format!("{upper} is never passed on"));
        return None;
    }
    if http::Method::from_bytes(name.as_bytes()).is_err() {
        report.error(text.span, format!("{name:?} is no HTTP method"));
        return None;
    }
    if METHODS.contains(&upper.as_str()) && upper != name {
        report.error_help(
            text.span,
            "methods are told apart by letter case",
            format!("write {upper:?}"),
        );
        return None;
    }
    if let Some(near) = nearest(name, METHODS.into_iter()).filter(|near| *near != name) {
        let finding = Diagnostic::warning(report.source, text.span, format!("{name:?} is no common method"));
        report.found.push(finding.help(format!("did you mean {near:?}?")));
    }
    Some(name.into())
}

/// A table of names with a text, or a list of texts, for each.
fn values<N>(
    report: &mut Report<'_>,
    fields: &mut Fields<'_, '_>,
    key: &'static str,
    read: impl Fn(&mut Report<'_>, Spanned<&str>) -> Option<N>,
) -> Vec<ValueMatcher<N>> {
    let Some(value) = fields.value(key) else {
        return Vec::new();
    };
    let Some(table) = Fields::of(report, value, key) else {
        return Vec::new();
    };
    let mut matchers = Vec::new();
    for (name, value) in table.entries() {
        let list = value
            .as_array()
            .map_or_else(|| std::slice::from_ref(value), |list| list.as_slice());
        let texts = list
            .iter()
            .filter_map(|value| text_of(report, name.value, value, "a string or a list of strings"));
        let values: Vec<Glob> = texts.map(|text| Glob::new(text.value)).collect();
        if list.is_empty() {
            report.error(
                name.span,
                format!("`{}` has an empty list, which nothing can match", name.value),
            );
        }
        matchers.extend(read(report, name).map(|name| ValueMatcher { name, values }));
    }
    matchers
}

fn credential(report: &mut Report<'_>, fields: &mut Fields<'_, '_>, rule: &mut Rule) {
    if let Some(text) = fields.string(report, "credential") {
        rule.place.credential = text.span;
        match CredentialName::parse(text.value) {
            Ok(name) => rule.credential = Some(name),
            Err(error) => report.error(text.span, error.to_string()),
        }
    }
    let Some(text) = fields.string(report, "client_auth") else {
        return;
    };
    rule.client_auth = match text.value {
        "strip" => ClientAuth::Strip,
        "pass" => ClientAuth::Pass,
        other => {
            report.error(
                text.span,
                format!("`client_auth` is \"strip\" or \"pass\", not {other:?}"),
            );
            ClientAuth::Strip
        }
    };
}

/// A deny without a word would refuse everything; that is what no rule at all does.
fn check_deny(report: &mut Report<'_>, fields: &Fields<'_, '_>, rule: &Rule, before: usize) {
    let says_nothing = rule.host.is_none()
        && rule.port.is_none()
        && rule.scheme.is_none()
        && rule.methods.is_empty()
        && rule.paths.is_empty()
        && rule.query.is_empty()
        && rule.headers.is_empty()
        && rule.conditions.is_empty();
    if rule.kind == RuleKind::Deny && says_nothing && report.found.len() == before {
        let help = "give it a host, paths, methods, headers, query, or a condition on the caller";
        report.error_help(fields.span, "this deny names nothing", help);
    }
}

/// The label of a rule without a name, made of what it says and never of where it stands.
fn describe(rule: &Rule) -> String {
    let methods = rule.methods.join(",");
    let port = match rule.port {
        None | Some(443) => String::new(),
        Some(port) => format!(":{port}"),
    };
    let host = rule
        .host
        .as_ref()
        .map_or_else(|| "*".to_owned(), ToString::to_string);
    let path = rule.paths.first().map(Template::as_str).unwrap_or("");
    let more = if rule.paths.len() > 1 { ",.." } else { "" };
    let space = if methods.is_empty() { "" } else { " " };
    format!("{} {methods}{space}{host}{port}{path}{more}", rule.kind)
}
