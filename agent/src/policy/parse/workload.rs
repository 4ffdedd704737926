//! `[[workload]]`: who it is, and its rules.

use ipnet::IpNet;
use toml_span::value::Value;

use super::super::diagnostic::Diagnostic;
use super::super::index::Index;
use super::super::matcher::{Account, Conditions, Glob};
use super::super::model::{Direct, ExecBy, Mode, Needs, Place, RuleKind, Workload};
use super::super::reader::{Fields, Report, Spanned, nearest, text_of};
use super::rule;
use crate::identity::{Sha256, WorkloadName};

/// Reads one workload. `None` only if it has no usable name; its other faults are reported all the same.
pub(super) fn parse(report: &mut Report<'_>, value: &Value<'_>) -> Option<Workload> {
    let mut fields = Fields::of(report, value, "a workload")?;
    let name = fields.required(report, "name");
    let name = name.and_then(|text| match WorkloadName::parse(text.value) {
        Ok(name) => Some(name),
        Err(error) => {
            report.error(text.span, error.to_string());
            None
        }
    });
    let conditions = conditions(report, &mut fields);
    let exec_by = exec_by(report, &mut fields);
    let mode = mode(report, &mut fields);
    let listen = fields
        .ports(report, "listen")
        .into_iter()
        .map(|port| port.value)
        .collect();
    let mut rules = Vec::new();
    for (key, kind) in [
        ("allow", RuleKind::Allow),
        ("deny", RuleKind::Deny),
        ("tunnel", RuleKind::Tunnel),
    ] {
        let tables = fields.tables(report, key);
        rules.extend(tables.iter().filter_map(|value| rule::parse(report, value, kind)));
    }
    let direct = fields
        .tables(report, "direct")
        .iter()
        .flat_map(|value| direct(report, value))
        .collect();
    let span = fields.span_of("name");
    fields.finish(report);
    rules.sort_by(|a, b| a.label.cmp(&b.label));
    let place = Place {
        source: report.source.clone(),
        span,
        credential: span,
    };
    let index = Index::default();
    let needs = Needs::of(&conditions, &rules);
    Some(Workload {
        name: name?,
        conditions,
        exec_by,
        mode,
        listen,
        direct,
        rules,
        index,
        needs,
        place,
    })
}

fn mode(report: &mut Report<'_>, fields: &mut Fields<'_, '_>) -> Mode {
    match fields.string(report, "mode") {
        None => Mode::Enforce,
        Some(text) => match text.value {
            "enforce" => Mode::Enforce,
            "observe" => Mode::Observe,
            other => {
                report.error(
                    text.span,
                    format!("`mode` is \"enforce\" or \"observe\", not {other:?}"),
                );
                Mode::Enforce
            }
        },
    }
}

/// The keys that ask something of the caller; the same on workloads and rules.
pub(super) fn conditions(report: &mut Report<'_>, fields: &mut Fields<'_, '_>) -> Conditions {
    let mut conditions = Conditions::default();
    for text in fields.strings(report, "units") {
        conditions.units.extend(unit(report, text));
    }
    conditions.users = accounts(report, fields, "user");
    for text in fields.strings(report, "exe") {
        let path = std::path::Path::new(text.value);
        let plain = path.components().collect::<std::path::PathBuf>();
        if path.is_absolute() && plain.as_os_str() == path.as_os_str() && !text.value.contains("/../") {
            conditions.exe.push(plain);
        } else {
            let help = "write it as /proc/PID/exe shows it, without `.`, `..`, `//` or a slash at the end";
            report.error_help(text.span, "`exe` is no absolute, plain path", help);
        }
    }
    for text in fields.strings(report, "exe_sha256") {
        match sha256(text.value) {
            Some(digest) => conditions.exe_sha256.push(digest),
            None => report.error_help(
                text.span,
                "`exe_sha256` is 64 hexadecimal digits",
                "sha256sum FILE prints it",
            ),
        }
    }
    for text in fields.strings(report, "container") {
        let hex = text
            .value
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if hex && (12..=64).contains(&text.value.len()) {
            conditions.containers.push(text.value.into());
        } else {
            let message = "`container` is a container's id: 12 to 64 lower-case hexadecimal digits";
            report.error(text.span, message);
        }
    }
    conditions
}

/// Kinds of units that hold processes (systemd.unit(5)).
const UNIT_TYPES: [&str; 5] = ["service", "scope", "socket", "mount", "swap"];

fn unit(report: &mut Report<'_>, text: Spanned<&str>) -> Option<Glob> {
    let name = text.value;
    let legal = |b: u8| b.is_ascii_alphanumeric() || b":_.\\@-*".contains(&b);
    if name.is_empty() || name.len() > 255 || !name.bytes().all(legal) {
        let message =
            format!("{name:?} is no unit name: letters, digits and : _ . \\ @ - (and * for any run)");
        report.error(text.span, message);
        return None;
    }
    match name.rsplit_once('.') {
        Some((front, kind)) if UNIT_TYPES.contains(&kind) && !front.is_empty() => Some(Glob::new(name)),
        Some((front, kind)) => {
            let near = nearest(kind, UNIT_TYPES.into_iter()).unwrap_or("service");
            let help = format!("did you mean {:?}?", format!("{front}.{near}"));
            report.error_help(
                text.span,
                format!("a unit of type {kind:?} holds no processes"),
                help,
            );
            None
        }
        None => {
            let help = format!("did you mean {:?}?", format!("{name}.service"));
            report.error_help(text.span, format!("the unit name {name:?} has no type"), help);
            None
        }
    }
}

/// Reads a digest of 64 hexadecimal digits.
#[must_use]
pub fn sha256(text: &str) -> Option<Sha256> {
    let mut digest = [0; 32];
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else {
        return None;
    };
    if pairs.len() != digest.len() || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, pair) in digest.iter_mut().zip(pairs) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(Sha256(digest))
}

/// Users or groups, by name or number.
fn accounts(report: &mut Report<'_>, fields: &mut Fields<'_, '_>, key: &'static str) -> Vec<Account> {
    let mut accounts = Vec::new();
    for value in fields.one_or_more(report, key) {
        if let Some(number) = value.as_integer() {
            match u32::try_from(number) {
                Ok(id) if id != u32::MAX => accounts.push(Account::Id(id)),
                Ok(_) | Err(_) => report.error(
                    value.span.into(),
                    format!("`{key}`: {number} is no user or group id"),
                ),
            }
        } else if let Some(text) = text_of(report, key, value, "a name or a number (or a list of them)") {
            let odd = |c: char| c.is_whitespace() || c.is_control() || c == ':' || c == '/';
            if text.value.is_empty() || text.value.contains(odd) {
                report.error(
                    text.span,
                    format!("`{key}`: {:?} can't be a user's or group's name", text.value),
                );
            } else {
                accounts.push(Account::Name(text.value.into()));
            }
        }
    }
    accounts
}

fn exec_by(report: &mut Report<'_>, fields: &mut Fields<'_, '_>) -> ExecBy {
    let Some(value) = fields.value("exec_by") else {
        return ExecBy::default();
    };
    let Some(mut fields) = Fields::of(report, value, "`exec_by`") else {
        return ExecBy::default();
    };
    let users = accounts(report, &mut fields, "users");
    let groups = accounts(report, &mut fields, "groups");
    fields.finish(report);
    ExecBy { users, groups }
}

fn direct(report: &mut Report<'_>, value: &Value<'_>) -> Vec<Direct> {
    let Some(mut fields) = Fields::of(report, value, "a direct rule") else {
        return Vec::new();
    };
    let cidr = match fields.required(report, "cidr") {
        Some(text) => network(report, text),
        None => None,
    };
    if fields.value("port").is_none() {
        fields.missing(report, "port");
    }
    let ports = fields.ports(report, "port");
    let force = fields.boolean(report, "force") == Some(true);
    for port in ports
        .iter()
        .filter(|port| matches!(port.value, 80 | 443) && !force)
    {
        let message = format!(
            "`direct` on port {} goes past every rule, credential and record",
            port.value
        );
        let help = "use an allow or a tunnel; if this is really meant, add `force = true`";
        report
            .found
            .push(Diagnostic::error(report.source, port.span, message).help(help));
    }
    fields.finish_with(report, |key| match key {
        "host" => Some(
            "`direct` works in the kernel, which knows addresses only: use `cidr`, or a tunnel for a name",
        ),
        "credential" => Some("`direct` goes past the agent, so nothing can be put on: use an allow"),
        _ => None,
    });
    let with = |cidr: IpNet| {
        ports
            .iter()
            .map(move |port| Direct {
                cidr,
                port: port.value,
            })
            .collect()
    };
    cidr.map(with).unwrap_or_default()
}

fn network(report: &mut Report<'_>, text: Spanned<&str>) -> Option<IpNet> {
    let parsed = text.value.parse::<IpNet>().or_else(|error| {
        text.value
            .parse::<std::net::IpAddr>()
            .map(IpNet::from)
            .map_err(|_not_an_address| error)
    });
    match parsed {
        Ok(net) if net.trunc() == net => Some(net),
        Ok(net) => {
            let help = format!("did you mean \"{}\"?", net.trunc());
            report.error_help(text.span, format!("{net} has bits set beyond its prefix"), help);
            None
        }
        Err(_) => {
            report.error(
                text.span,
                format!(
                    "{:?} is no address or network like 10.0.5.0/24 or fd00::/8",
                    text.value
                ),
            );
            None
        }
    }
}
