//! A record as a person reads it.

use std::fmt;
use std::io::Write;

use crate::audit::record::{Decision, Kind, Outcome, Record};
use crate::cli::safe::Safe;

/// One record on one line. What a client chose is shown as it is only if it is plain, else quoted and escaped: it
/// can't look like another field, or reach the terminal.
pub(super) struct Human<'a>(pub(super) &'a Record);

impl fmt::Display for Human<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let record = self.0;
        let workload = record.caller.workload.as_ref().map_or("-", |name| name.as_str());
        write!(f, "{} {:<9} {workload}", record.time, verdict(record))?;
        self.target(f)?;
        if let Some(status) = record.status {
            write!(f, " -> {status}")?;
        }
        self.facts(f)?;
        write!(f, " {} id={}", Took(record.timings.total_us), record.id)
    }
}

fn verdict(record: &Record) -> &'static str {
    match (record.outcome, record.decision) {
        (Outcome::Denied, _) => "denied",
        (Outcome::Failed, _) => "failed",
        (Outcome::Aborted, _) => "aborted",
        (Outcome::Completed, Some(Decision::Observe)) => "observed",
        (Outcome::Completed, Some(Decision::Allow | Decision::Deny) | None) => "allowed",
    }
}

fn kind(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Call => None,
        Kind::Tunnel => Some("tunnel"),
        Kind::Direct => Some("direct"),
        Kind::Dns => Some("name"),
        Kind::KernelRefusal => Some("kernel"),
        Kind::Connection => Some("connection"),
        Kind::Unrecorded => Some("calls without a record"),
    }
}

impl Human<'_> {
    fn target(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let record = self.0;
        if let Some(kind) = kind(record.kind) {
            write!(f, " {kind}")?;
        }
        if let Some(method) = &record.method {
            write!(f, " {}", Safe(method))?;
        }
        let mut target = String::new();
        if let Some(authority) = &record.authority {
            target.push_str(authority);
        } else if let Some(destination) = record.original_destination {
            target.push_str(&destination.to_string());
        }
        target.push_str(record.path.as_deref().unwrap_or_default());
        if let Some(query) = &record.query {
            target.push('?');
            target.push_str(query);
        }
        if !target.is_empty() {
            write!(f, " {}", Safe(&target))?;
        }
        Ok(())
    }

    fn facts(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let record = self.0;
        let error = record.error.as_ref();
        let facts = [
            ("reason", record.reason.as_deref()),
            ("rule", record.rule.as_deref()),
            (
                "credential",
                record.credential.as_ref().map(|credential| &*credential.name),
            ),
            ("unit", record.caller.unit.as_deref()),
            (
                "exe",
                record.caller.exe.as_ref().and_then(|exe| exe.path.as_deref()),
            ),
            ("user", record.caller.user.as_deref()),
            (
                "error",
                error
                    .filter(|_| record.reason.is_none())
                    .map(|error| &*error.message),
            ),
        ];
        for (name, value) in facts {
            if let Some(value) = value {
                write!(f, " {name}={}", Safe(value))?;
            }
        }
        if let Some(pid) = record.caller.pid {
            write!(f, " pid={pid}")?;
        }
        if let Some(cgroup) = record
            .caller
            .cgroup
            .as_ref()
            .and_then(|cgroup| cgroup.path.as_deref())
        {
            write!(f, " cgroup={}", Safe(cgroup))?;
        }
        if let Some(count) = record.count {
            write!(f, " count={count}")?;
        }
        Ok(())
    }
}

/// Microseconds in the unit that suits them.
struct Took(u64);

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            micros @ ..1000 => write!(f, "{micros}us"),
            micros @ ..1_000_000 => write!(f, "{}.{}ms", micros / 1000, micros / 100 % 10),
            micros => write!(f, "{}.{}s", micros / 1_000_000, micros / 100_000 % 10),
        }
    }
}

/// Every field on a line of its own, `exe.path  /usr/bin/curl`.
pub(super) fn fields(prefix: &str, value: &serde_json::Value, out: &mut impl Write) -> anyhow::Result<()> {
    match value {
        serde_json::Value::Object(object) => {
            for (name, value) in object {
                let dot = if prefix.is_empty() { "" } else { "." };
                fields(&format!("{prefix}{dot}{name}"), value, out)?;
            }
        }
        serde_json::Value::String(text) => writeln!(out, "{prefix:<22} {}", Safe(text))?,
        serde_json::Value::Null
        | serde_json::Value::Bool(_)
        | serde_json::Value::Number(_)
        | serde_json::Value::Array(_) => writeln!(out, "{prefix:<22} {value}")?,
    }
    Ok(())
}
