//! `[credential.NAME]`.

use std::path::PathBuf;
use std::time::Duration;

use http::header::HeaderName;
use toml_span::value::Value;

use super::super::CredentialName;
use super::super::path::NormalPath;
use super::super::reader::{Fields, Report, Spanned, nearest};
use super::ParsedCredential;
use crate::addr::{Authority, HostName};
use crate::credential::spec::{CredentialScheme, CredentialSource, CredentialSpec, HostScope};

/// Reads all credentials of one file.
pub(super) fn parse_all(report: &mut Report<'_>, value: &Value<'_>) -> Vec<ParsedCredential> {
    let Some(table) = Fields::of(report, value, "`credential`") else {
        return Vec::new();
    };
    let mut credentials = Vec::new();
    for (key, value) in table.entries() {
        match CredentialName::parse(key.value) {
            Ok(name) => credentials.push(ParsedCredential {
                spec: spec(report, &name, value),
                name,
                source: report.source.clone(),
                span: key.span,
            }),
            Err(error) => report.error(key.span, error.to_string()),
        }
    }
    credentials
}

fn spec(report: &mut Report<'_>, name: &CredentialName, value: &Value<'_>) -> Option<CredentialSpec> {
    let mut fields = Fields::of(report, value, "a credential")?;
    let texts = fields.strings(report, "hosts");
    if fields.value("hosts").is_none() {
        fields.missing(report, "hosts");
    }
    let hosts: Vec<HostScope> = texts
        .into_iter()
        .filter_map(|text| host_scope(report, text))
        .collect();
    let scheme = scheme(report, &mut fields);
    let source = match fields.value("source") {
        Some(value) => source(report, value),
        None => {
            fields.missing(report, "source");
            None
        }
    };
    fields.finish_with(report, |key| match key {
        "host" => Some("did you mean `hosts`? it takes one authority or a list"),
        "value" | "token" | "secret" => {
            Some("a policy holds no secrets: put the value in a file and name it in `source`")
        }
        "file" | "exec" | "systemd" => Some("it goes into `source`, like source = { file = \"/etc/...\" }"),
        _ => None,
    });
    let spec = CredentialSpec {
        name: name.clone(),
        hosts,
        scheme: scheme?,
        source: source?,
    };
    (!spec.hosts.is_empty()).then_some(spec)
}

/// `host[:port][/path/prefix]`.
fn host_scope(report: &mut Report<'_>, text: Spanned<&str>) -> Option<HostScope> {
    let whole = text.value;
    if let Some((_, rest)) = whole.split_once("://") {
        let message = "`hosts` names hosts, not URLs";
        report.error_help(
            text.span,
            message,
            format!("write {:?}", rest.trim_end_matches('/')),
        );
        return None;
    }
    let (authority, path) = whole.find('/').map_or((whole, ""), |at| whole.split_at(at));
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => (host, port.parse::<u16>().ok().filter(|port| *port != 0)),
        None => (authority, Some(443)),
    };
    let Some(port) = port else {
        report.error(text.span, format!("{whole:?} has no valid port after its colon"));
        return None;
    };
    if host.contains('*') {
        let help = "list every host by its name: a credential is never sent to a name that nobody wrote down";
        report.error_help(text.span, "a credential's hosts have no wildcards", help);
        return None;
    }
    let host = match HostName::parse(host) {
        Ok(host) => host,
        Err(error) => {
            report.error(text.span, format!("`hosts`: {error}"));
            return None;
        }
    };
    let path_prefix = path_prefix(report, text, path)?;
    Some(HostScope {
        authority: Authority::new(host, port),
        path_prefix,
    })
}

/// `Some(None)` for every path.
fn path_prefix(report: &mut Report<'_>, text: Spanned<&str>, path: &str) -> Option<Option<String>> {
    let prefix = path.strip_suffix('/').unwrap_or(path);
    if prefix.is_empty() {
        return Some(None);
    }
    match NormalPath::parse(prefix) {
        Ok(normal) if normal.as_str() == prefix => Some(Some(prefix.to_owned())),
        Ok(normal) => {
            report.error_help(
                text.span,
                "the path is not in its normal form",
                format!("write {:?}", normal.as_str()),
            );
            None
        }
        Err(error) => {
            report.error(text.span, format!("`hosts`: {error}"));
            None
        }
    }
}

const SCHEMES: [&str; 4] = ["bearer", "basic", "header", "query"];

fn scheme(report: &mut Report<'_>, fields: &mut Fields<'_, '_>) -> Option<CredentialScheme> {
    let text = fields.required(report, "scheme")?;
    match text.value {
        "bearer" => Some(CredentialScheme::Bearer),
        "basic" => {
            let user = fields.required(report, "username")?;
            if user.value.contains(|c: char| c == ':' || c.is_control()) {
                report.error(
                    user.span,
                    "a `username` holds no colon and no controls (RFC 7617)",
                );
                return None;
            }
            Some(CredentialScheme::Basic {
                username: user.value.to_owned(),
            })
        }
        "header" => header(report, fields),
        "query" => {
            let name = fields.required(report, "name")?;
            if name.value.is_empty() {
                report.error(name.span, "`name` is empty");
                return None;
            }
            Some(CredentialScheme::Query {
                name: name.value.to_owned(),
            })
        }
        other => {
            let help = match nearest(other, SCHEMES.into_iter()) {
                Some(near) => format!("did you mean {near:?}?"),
                None => format!("the schemes are {}", SCHEMES.join(", ")),
            };
            report.error_help(text.span, format!("there is no scheme {other:?}"), help);
            // What belongs to the scheme is not unknown for that.
            for key in ["username", "name", "prefix"] {
                fields.value(key);
            }
            None
        }
    }
}

/// Headers that frame the message or name its receiver: setting one changes what is sent, not who sends it.
const RESERVED: [&str; 10] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "upgrade",
    "te",
    "trailer",
    "keep-alive",
    "proxy-connection",
    "expect",
];

fn header(report: &mut Report<'_>, fields: &mut Fields<'_, '_>) -> Option<CredentialScheme> {
    let name = fields.required(report, "name");
    let prefix = fields.string(report, "prefix");
    let name = name?;
    let Ok(header) = name.value.parse::<HeaderName>() else {
        report.error(name.span, format!("{:?} is no header name", name.value));
        return None;
    };
    if RESERVED.contains(&header.as_str()) {
        report.error(name.span, format!("a credential can't go into `{header}`"));
        return None;
    }
    if let Some(prefix) = prefix.filter(|prefix| !prefix.value.bytes().all(|b| (b' '..=b'~').contains(&b))) {
        report.error(prefix.span, "`prefix` is visible ASCII and spaces");
        return None;
    }
    Some(CredentialScheme::Header {
        name: header,
        prefix: prefix.map(|prefix| prefix.value.to_owned()),
    })
}

fn source(report: &mut Report<'_>, value: &Value<'_>) -> Option<CredentialSource> {
    let mut fields = Fields::of(report, value, "`source`")?;
    let before = report.found.len();
    let file = fields.string(report, "file");
    let systemd = fields.string(report, "systemd");
    let command = fields.strings(report, "exec");
    let found = [file.is_some(), systemd.is_some(), !command.is_empty()]
        .into_iter()
        .filter(|given| *given)
        .count();
    let span = fields.span;
    let source = if let Some(path) = file {
        absolute(report, path).map(|path| CredentialSource::File { path })
    } else if let Some(name) = systemd {
        systemd_name(report, name)
    } else {
        exec(report, &mut fields, &command)
    };
    fields.finish(report);
    if found != 1 && report.found.len() == before {
        let message = "`source` is exactly one of `file`, `systemd`, `exec`";
        report.error_help(
            span,
            message,
            "like source = { file = \"/etc/callgate/secrets/NAME\" }",
        );
        return None;
    }
    source
}

fn absolute(report: &mut Report<'_>, text: Spanned<&str>) -> Option<PathBuf> {
    if text.value.starts_with('/') && !text.value.contains('\0') {
        return Some(PathBuf::from(text.value));
    }
    report.error(text.span, format!("{:?} is no absolute path", text.value));
    None
}

fn systemd_name(report: &mut Report<'_>, text: Spanned<&str>) -> Option<CredentialSource> {
    let name = text.value;
    if name.is_empty()
        || name.len() > 255
        || name.starts_with('.')
        || !name.bytes().all(|b| b.is_ascii_graphic() && b != b'/')
    {
        report.error(
            text.span,
            format!("{name:?} is no credential id of systemd: one plain file name"),
        );
        return None;
    }
    Some(CredentialSource::Systemd {
        name: name.to_owned(),
    })
}

fn exec(
    report: &mut Report<'_>,
    fields: &mut Fields<'_, '_>,
    command: &[Spanned<&str>],
) -> Option<CredentialSource> {
    let timeout = fields.integer(report, "timeout_seconds", 1, 300).unwrap_or(10);
    let ttl = fields.integer(report, "ttl_seconds", 1, 86_400).unwrap_or(300);
    absolute(report, *command.first()?)?;
    Some(CredentialSource::Exec {
        command: command.iter().map(|word| word.value.to_owned()).collect(),
        timeout: Duration::from_secs(timeout),
        ttl: Duration::from_secs(ttl),
    })
}
