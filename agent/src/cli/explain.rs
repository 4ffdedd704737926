//! `callgate explain`: the decision on one described call, and the rule path.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use serde_json::{Value, json};

use crate::addr::{Authority, HostName};
use crate::cli::check::{CheckArgs, check, render};
use crate::config::DEFAULT_PATH;
use crate::http::query::without_overrides;
use crate::identity::{Cgroup, Executable, Identity, Sha256, WorkloadName};
use crate::policy::explain::{Considered, Explanation, Miss, explain};
use crate::policy::matcher::Holds;
use crate::policy::path::PathError;
use crate::policy::{
    Call, ClientAuth, Decision, DenialReason, Flow, NormalPath, Permit, Policy, Route, Scheme, route,
};

/// What `callgate explain` is told. Facts about the caller that are not given count as unknown.
#[derive(Clone, Debug, clap::Args)]
pub struct ExplainArgs {
    /// The workload that calls
    #[arg(long, short)]
    pub workload: String,
    /// The method, in upper case
    pub method: String,
    /// The URL; https unless it says http
    pub url: String,
    /// The caller's executable
    #[arg(long, value_name = "PATH")]
    pub exe: Option<PathBuf>,
    /// The executable's digest
    #[arg(long, value_name = "HEX")]
    pub exe_sha256: Option<Sha256Arg>,
    /// The caller's user: a name or a number
    #[arg(long)]
    pub user: Option<String>,
    /// The caller's systemd unit
    #[arg(long)]
    pub unit: Option<String>,
    /// The caller's container
    #[arg(long, value_name = "ID")]
    pub container: Option<String>,
    /// A header of the request, KEY:VALUE; may be repeated
    #[arg(long, short = 'H', value_name = "KEY:VALUE")]
    pub header: Vec<String>,
    /// The agent's settings
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    pub config: PathBuf,
    /// The policy's directory, instead of the one that the settings name
    #[arg(long, value_name = "DIR")]
    pub policy_dir: Option<PathBuf>,
    /// One JSON document instead of text
    #[arg(long)]
    pub json: bool,
}

/// A digest on the command line.
#[derive(Clone, Copy, Debug)]
pub struct Sha256Arg(pub Sha256);

impl FromStr for Sha256Arg {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        crate::policy::parse::sha256(text)
            .map(Self)
            .ok_or("a SHA-256 digest is 64 hexadecimal digits")
    }
}

/// Something on the command line that makes no call.
#[derive(Debug, thiserror::Error)]
enum InputError {
    #[error("the policy has errors; see `callgate check`:\n\n{drawn}")]
    Policy { drawn: String },
    #[error("no workload {name:?} in the policy{help}")]
    Workload { name: String, help: String },
    #[error("{url:?} is no http or https URL: {reason}")]
    Url { url: String, reason: String },
    #[error("{text:?} is no header; write KEY:VALUE")]
    Header { text: String },
    #[error("{text:?} is no HTTP method")]
    Method { text: String },
}

/// The call that was described; the path may have no normal form.
#[derive(Debug)]
struct Described {
    scheme: Scheme,
    authority: Authority,
    method: String,
    path: Result<NormalPath, PathError>,
    query: String,
    headers: http::HeaderMap,
}

/// Decides and prints why. Exit code 0 if the call may go out, 1 if not, 2 for wrong input.
///
/// # Errors
/// If `out` or `err` can't be written to.
pub fn run(args: &ExplainArgs, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<ExitCode> {
    match answer(args) {
        Ok(answer) => {
            if args.json {
                writeln!(out, "{:#}", answer.document)?;
            } else {
                write!(out, "{}", answer.text)?;
            }
            Ok(if answer.allowed {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(1)
            })
        }
        Err(error) => {
            writeln!(err, "error: {error}")?;
            Ok(ExitCode::from(2))
        }
    }
}

struct Answer {
    allowed: bool,
    document: Value,
    text: String,
}

fn answer(args: &ExplainArgs) -> Result<Answer, InputError> {
    let described = describe(args)?;
    let policy = load(args)?;
    let identity = identity(args, &policy)?;
    let path = match &described.path {
        Ok(path) => path,
        Err(error) => return Ok(ambiguous(args, *error)),
    };
    let flow = Flow {
        port: described.authority.port,
        host: &described.authority.host,
        scheme: described.scheme,
    };
    let call = Call {
        scheme: described.scheme,
        authority: &described.authority,
        method: &described.method,
        path,
        query: &described.query,
        headers: &described.headers,
    };
    let missing = || InputError::Workload {
        name: args.workload.clone(),
        help: String::new(),
    };
    let explanation = explain(&policy, &identity, &call).ok_or_else(missing)?;
    Ok(match route(&policy, &identity, &flow) {
        Ok(Route::Tunnel(permit)) => tunnel(args, &permit, &explanation),
        Ok(Route::Intercept) | Err(_) => decided(args, &call, &explanation),
    })
}

fn load(args: &ExplainArgs) -> Result<Policy, InputError> {
    let checked = check(&CheckArgs {
        config: args.config.clone(),
        policy_dir: args.policy_dir.clone(),
        no_secrets: true,
        json: false,
    });
    let drawn = render(&checked.found, &checked.sources, false);
    checked
        .policy
        .filter(|_| checked.config.is_some())
        .ok_or(InputError::Policy { drawn })
}

fn describe(args: &ExplainArgs) -> Result<Described, InputError> {
    let bad_url = |reason: String| InputError::Url {
        url: args.url.clone(),
        reason,
    };
    let (scheme, rest) = match args.url.split_once("://") {
        Some(("https", rest)) => (Scheme::Https, rest),
        Some(("http", rest)) => (Scheme::Http, rest),
        Some((other, _)) => return Err(bad_url(format!("the scheme is {other:?}"))),
        None => (Scheme::Https, args.url.as_str()),
    };
    let rest = rest.split('#').next().unwrap_or(rest);
    let (authority, target) = rest.find(['/', '?']).map_or((rest, ""), |at| rest.split_at(at));
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let default_port = if scheme == Scheme::Http { 80 } else { 443 };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => (
            host,
            port.parse()
                .map_err(|error| bad_url(format!("the port: {error}")))?,
        ),
        None => (authority, default_port),
    };
    let host = HostName::parse(host).map_err(|error| bad_url(error.to_string()))?;
    if http::Method::from_bytes(args.method.as_bytes()).is_err() {
        return Err(InputError::Method {
            text: args.method.clone(),
        });
    }
    Ok(Described {
        scheme,
        authority: Authority::new(host, port),
        method: args.method.clone(),
        path: NormalPath::parse(if path.is_empty() { "/" } else { path }),
        // As calls are decided: what overrides the method is taken off before.
        query: without_overrides(query).unwrap_or_else(|| query.to_owned()),
        headers: headers(&args.header)?,
    })
}

fn headers(texts: &[String]) -> Result<http::HeaderMap, InputError> {
    let mut headers = http::HeaderMap::new();
    for text in texts {
        let header = text.split_once(':').and_then(|(name, value)| {
            let name = http::HeaderName::from_str(name.trim()).ok()?;
            Some((name, http::HeaderValue::from_str(value.trim()).ok()?))
        });
        let (name, value) = header.ok_or_else(|| InputError::Header { text: text.clone() })?;
        headers.append(name, value);
    }
    Ok(headers)
}

fn identity(args: &ExplainArgs, policy: &Policy) -> Result<Identity, InputError> {
    let known = WorkloadName::parse(&args.workload)
        .ok()
        .filter(|name| policy.workload(name).is_some());
    let workload = known.ok_or_else(|| {
        let names = policy.workloads().map(|workload| workload.name().as_str());
        let near = crate::policy::reader::nearest(&args.workload, names);
        let help = near
            .map(|near| format!("; did you mean {near:?}?"))
            .unwrap_or_default();
        InputError::Workload {
            name: args.workload.clone(),
            help,
        }
    })?;
    let uid = args.user.as_ref().and_then(|user| user.parse().ok());
    let text = |text: &Option<String>| text.as_deref().map(Into::into);
    Ok(Identity {
        workload,
        cgroup: Cgroup { id: 0, path: None },
        unit: text(&args.unit),
        invocation: None,
        container: text(&args.container),
        // No user has this number (setresuid(2) reads it as "leave as it is").
        uid: uid.unwrap_or(u32::MAX),
        gid: u32::MAX,
        user: if uid.is_some() { None } else { text(&args.user) },
        process: None,
        executable: args.exe.as_ref().map(|path| Executable {
            path: Some(path.clone()),
            device: 0,
            inode: 0,
            sha256: args.exe_sha256.map(|digest| digest.0),
        }),
        netns_cookie: 0,
    })
}

fn ambiguous(args: &ExplainArgs, error: PathError) -> Answer {
    let code = DenialReason::AmbiguousPath.code();
    let document = json!({
        "decision": "deny", "workload": args.workload, "method": args.method, "url": args.url,
        "reason": code, "detail": error.to_string(),
    });
    Answer {
        allowed: false,
        document,
        text: format!("deny    {} {}\nreason  {code}: {error}\n", args.method, args.url),
    }
}

fn tunnel(args: &ExplainArgs, permit: &Permit, explanation: &Explanation) -> Answer {
    let document = json!({
        "decision": "tunnel", "workload": args.workload, "method": args.method, "url": args.url,
        "rule": permit.rule(), "private": permit.private(), "considered": considered(explanation),
    });
    let rule = permit.rule().map_or("-", |rule| rule);
    let text = format!(
        "tunnel  {}\nrule    {rule}{}\nTLS to this host is passed through unread: no call is checked, no credential put on.\n",
        permit.authority(),
        written(explanation, rule),
    );
    Answer {
        allowed: true,
        document,
        text,
    }
}

fn decided(args: &ExplainArgs, call: &Call<'_>, explanation: &Explanation) -> Answer {
    let mut document = json!({
        "workload": args.workload, "method": call.method, "url": args.url, "path": call.path.as_str(),
        "caller": explanation.caller.map(|(key, holds)| caller(key, holds)),
        "considered": considered(explanation),
    });
    let (allowed, facts) = match &explanation.decision {
        Decision::Allow(permit) => (true, allow_facts(permit)),
        Decision::Deny(denial) => (
            false,
            vec![
                ("decision", json!("deny")),
                ("reason", json!(denial.reason.code())),
                ("rule", json!(denial.rule)),
            ],
        ),
    };
    let mut text = String::new();
    for (key, value) in facts {
        let shown = value
            .as_str()
            .map_or_else(|| value.to_string(), ToOwned::to_owned);
        match (key, value.is_null()) {
            ("decision", _) => text += &format!("{shown:<12}{} {}\n", args.method, args.url),
            ("rule", false) => text += &format!("{key:<12}{shown}{}\n", written(explanation, &shown)),
            (_, false) => text += &format!("{key:<12}{shown}\n"),
            (_, true) => {}
        }
        if let Some(object) = document.as_object_mut() {
            object.insert(key.to_owned(), value);
        }
    }
    text += &format!("{:<12}{}\n", "path sent", call.path);
    if let Some((key, holds)) = explanation.caller {
        text += &format!("{:<12}{}\n", "caller", caller(key, holds));
    }
    text += &rules_text(explanation);
    Answer {
        allowed,
        document,
        text,
    }
}

fn allow_facts(permit: &Permit) -> Vec<(&'static str, Value)> {
    let client_auth = match permit.client_auth() {
        ClientAuth::Strip => "strip",
        ClientAuth::Pass => "pass",
    };
    vec![
        (
            "decision",
            json!(if permit.observed().is_some() {
                "observe"
            } else {
                "allow"
            }),
        ),
        ("rule", json!(permit.rule())),
        ("credential", json!(permit.credential().map(ToString::to_string))),
        ("client_auth", json!(client_auth)),
        ("private", json!(permit.private())),
        (
            "would_deny",
            json!(permit.observed().map(|denial| denial.reason.code())),
        ),
    ]
}

fn caller(key: &str, holds: Holds) -> String {
    match holds {
        Holds::Unknown => format!("the workload asks for `{key}`, which is unknown here"),
        Holds::Yes | Holds::No => format!("does not meet the workload's `{key}`"),
    }
}

/// Where a rule is written, in brackets.
fn written(explanation: &Explanation, label: &str) -> String {
    let rule = explanation.considered.iter().find(|rule| *rule.label == *label);
    rule.map(|rule| format!("  ({}:{})", rule.file, rule.line))
        .unwrap_or_default()
}

fn considered(explanation: &Explanation) -> Vec<Value> {
    let value = |rule: &Considered| {
        json!({
            "kind": rule.kind.to_string(), "rule": rule.label, "file": rule.file, "line": rule.line,
            "matched": rule.miss.is_none(), "miss": rule.miss.map(|miss| miss.to_string()),
        })
    };
    explanation.considered.iter().map(value).collect()
}

/// Rules for other hosts are counted, not listed.
fn rules_text(explanation: &Explanation) -> String {
    let (others, here): (Vec<&Considered>, Vec<&Considered>) = explanation
        .considered
        .iter()
        .partition(|rule| rule.miss == Some(Miss::Host));
    let width = here
        .iter()
        .map(|rule| rule.label.chars().count())
        .max()
        .unwrap_or(0);
    let mut text = "\n".to_owned();
    for rule in here {
        let miss = rule
            .miss
            .map_or_else(|| "matches".to_owned(), |miss| miss.to_string());
        let kind = rule.kind.to_string();
        text += &format!(
            "  {kind:<8}{:<width$}  {miss}  ({}:{})\n",
            rule.label, rule.file, rule.line
        );
    }
    if !others.is_empty() {
        text += &format!("  {} for other hosts\n", others.len());
    }
    text
}

#[cfg(test)]
mod tests;
