//! What the operator writes in callgate.toml: types and ranges, every key optional.

use toml_span::value::Value;

use super::limits::{self, Limit};
use super::{LogLevel, QueryValues};
use crate::policy::reader::{Fields, Report, Spanned, nearest};
use crate::policy::{Diagnostic, Source};

/// The file as it is written. `None` where a key is not given.
#[derive(Debug, Default)]
pub struct FileConfig {
    /// Absolute paths by key, in the file's own order of keys.
    pub(super) paths: Vec<(&'static str, Spanned<String>)>,
    pub(super) cgroup_parent: Option<Spanned<String>>,
    pub(super) worker_user: Option<Spanned<String>>,
    pub(super) threads: Option<u64>,
    pub(super) canary_seconds: Option<u64>,
    pub(super) log_level: Option<LogLevel>,
    pub(super) resolvers: Option<Vec<Spanned<String>>>,
    pub(super) upstream_ca: Option<Vec<Spanned<String>>>,
    pub(super) audit: FileAudit,
    /// Those limits that are given.
    pub(super) limits: Vec<(&'static Limit, u64)>,
}

/// `[audit]`.
#[derive(Debug, Default)]
pub(super) struct FileAudit {
    pub(super) file: Option<Spanned<String>>,
    pub(super) max_size_mib: Option<u64>,
    pub(super) keep: Option<u64>,
    pub(super) query_values: Option<QueryValues>,
}

/// The keys that hold an absolute path.
const PATHS: [&str; 5] = [
    "policy_dir",
    "state_dir",
    "runtime_dir",
    "admin_socket",
    "bpffs_dir",
];

/// Reads the file's text; what is wrong with it comes second.
#[must_use]
pub fn read(source: &Source) -> (FileConfig, Vec<Diagnostic>) {
    let mut report = Report::new(source);
    let mut file = FileConfig::default();
    if let Some(root) = report.parse()
        && let Some(mut fields) = Fields::of(&mut report, &root, "callgate.toml")
    {
        read_root(&mut report, &mut fields, &mut file);
        fields.finish_with(&mut report, |key| match key {
            "workload" | "credential" => Some("rules and credentials go into files of `policy_dir`"),
            _ => None,
        });
    }
    (file, report.found)
}

fn read_root(report: &mut Report<'_>, fields: &mut Fields<'_, '_>, file: &mut FileConfig) {
    for key in PATHS {
        file.paths
            .extend(owned(fields.string(report, key)).map(|path| (key, path)));
    }
    file.cgroup_parent = owned(fields.string(report, "cgroup_parent"));
    file.worker_user = owned(fields.string(report, "worker_user"));
    file.threads = fields.integer(report, "threads", 0, 1024);
    file.canary_seconds = fields.integer(report, "canary_seconds", 1, 3600);
    let levels = LogLevel::ALL.map(|level| (level.as_str(), level));
    file.log_level = word(report, fields, "log_level", &levels);
    file.resolvers = list(report, fields, "resolvers");
    file.upstream_ca = list(report, fields, "upstream_ca");
    if let Some(value) = fields.value("audit") {
        file.audit = audit(report, value);
    }
    if let Some(value) = fields.value("limits") {
        file.limits = limits(report, value);
    }
}

fn audit(report: &mut Report<'_>, value: &Value<'_>) -> FileAudit {
    let Some(mut fields) = Fields::of(report, value, "`audit`") else {
        return FileAudit::default();
    };
    let query_values = [("redacted", QueryValues::Redacted), ("plain", QueryValues::Plain)];
    let audit = FileAudit {
        file: owned(fields.string(report, "file")),
        max_size_mib: fields.integer(report, "max_size_mib", 1, 1024 * 1024),
        keep: fields.integer(report, "keep", 0, 10_000),
        query_values: word(report, &mut fields, "query_values", &query_values),
    };
    fields.finish(report);
    audit
}

fn limits(report: &mut Report<'_>, value: &Value<'_>) -> Vec<(&'static Limit, u64)> {
    let Some(mut fields) = Fields::of(report, value, "`limits`") else {
        return Vec::new();
    };
    let mut given = Vec::new();
    for limit in limits::ALL {
        let (least, greatest) = limit.range;
        let number = fields.integer(report, limit.key, least, greatest);
        given.extend(number.map(|number| (limit, number)));
    }
    fields.finish(report);
    given
}

fn owned(text: Option<Spanned<&str>>) -> Option<Spanned<String>> {
    text.map(|text| Spanned {
        value: text.value.to_owned(),
        span: text.span,
    })
}

/// A list of strings that may be empty.
fn list(
    report: &mut Report<'_>,
    fields: &mut Fields<'_, '_>,
    key: &'static str,
) -> Option<Vec<Spanned<String>>> {
    let empty = fields.value(key)?.as_array().is_some_and(Vec::is_empty);
    if empty {
        return Some(Vec::new());
    }
    Some(
        fields
            .strings(report, key)
            .into_iter()
            .filter_map(|text| owned(Some(text)))
            .collect(),
    )
}

/// One of a few words.
fn word<T: Copy>(
    report: &mut Report<'_>,
    fields: &mut Fields<'_, '_>,
    key: &'static str,
    words: &[(&'static str, T)],
) -> Option<T> {
    let text = fields.string(report, key)?;
    let found = words.iter().find(|(word, _)| *word == text.value);
    if found.is_none() {
        let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let message = format!("`{key}` is one of {}, not {:?}", names.join(", "), text.value);
        match nearest(text.value, names.into_iter()) {
            Some(near) => report.error_help(text.span, message, format!("did you mean {near:?}?")),
            None => report.error(text.span, message),
        }
    }
    found.map(|(_, value)| *value)
}
