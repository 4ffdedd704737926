//! The direction of dependencies inside the agent: down only, and pure at the bottom.
//!
//! Read from `use crate::` statements outside tests. The table is the map in ARCHITECTURE.md.

use super::Finding;
use super::source::{Source, has_word};

/// Modules and their layers; the longest entry that fits counts, and a module has its parent's layer.
const LAYERS: &[(&str, u8)] = &[
    ("main", 5),
    ("lib", 5),
    ("cli", 5),
    ("supervisor", 4),
    ("worker", 4),
    ("proxy", 3),
    ("admin", 3),
    ("audit", IO),
    ("channel", IO),
    ("config", IO),
    ("credential", IO),
    ("dns", IO),
    ("ebpf", IO),
    ("enroll", IO),
    ("enroll::unit", PURE),
    ("http", IO),
    ("identity::cgroup", IO),
    ("identity::executable", IO),
    ("identity::forked", IO),
    ("identity::members", IO),
    ("identity::process", IO),
    ("identity::resolve", IO),
    ("identity::users", IO),
    ("net", IO),
    ("policy::store", IO),
    ("systemd", IO),
    ("tls", IO),
    ("addr", PURE),
    ("audit::record", PURE),
    ("credential::secret", PURE),
    ("credential::spec", PURE),
    ("http::authority", PURE),
    ("http::detect", PURE),
    ("http::headers", PURE),
    ("http::query", PURE),
    ("identity", PURE),
    ("policy", PURE),
    ("tls::client_hello", PURE),
    ("budget", 0),
    ("linkage", 0),
    ("memory", 0),
    ("rights", 0),
    ("telemetry", 0),
    // What unit tests of all layers share.
    ("tests", 0),
    ("time", 0),
];

const IO: u8 = 2;
const PURE: u8 = 1;

/// The edges between modules of the IO layer that there are; each because the first is made of the second.
const SIDEWAYS: &[(&str, &str)] = &[
    ("channel", "tls"),
    ("config", "policy"),
    ("credential", "config"),
    ("enroll", "identity"),
    ("http", "net"),
    ("identity", "ebpf"),
    ("net", "ebpf"),
    ("tls", "net"),
];

/// What a pure module may not name: time, bytes and facts come in as arguments.
const IMPURE: &[&str] = &[
    "tokio",
    "aya",
    "hyper",
    "std::fs",
    "std::env",
    "std::net::TcpStream",
    "std::process",
    "Instant::now",
    "SystemTime::now",
];

/// The findings of one file; nothing for files outside the agent's library.
pub(super) fn check(source: &Source) -> Vec<Finding> {
    let Some(module) = module(&source.path) else {
        return Vec::new();
    };
    let Some((_, layer)) = entry(&module) else {
        return vec![source.finding(1, "layer", "give the module a layer in xtask/src/tidy/layers.rs")];
    };
    let mut findings = Vec::new();
    for (line, target) in uses(source) {
        if let Some(fix) = wrong_edge(&module, layer, &target) {
            findings.push(source.finding(line, "layer", fix));
        }
    }
    if layer == PURE {
        findings.extend(impure(source));
    }
    findings
}

fn wrong_edge(module: &str, layer: u8, target: &str) -> Option<String> {
    let (name, below) = entry(target)?;
    let (own, other) = (top(module), top(target));
    if own == other && below <= layer.max(IO) {
        return None;
    }
    let sideways = below == IO && layer == IO && SIDEWAYS.contains(&(own, other));
    // What has no layer below it to lean on stands alone; from the third layer up neighbours may meet.
    let neighbours = below == layer && layer != IO && layer != 0;
    if below < layer || sideways || neighbours {
        return None;
    }
    Some(format!(
        "{module} (layer {layer}) must not use {name} (layer {below}); pass it in as a value"
    ))
}

fn impure(source: &Source) -> Vec<Finding> {
    let named = |code: &str| {
        IMPURE
            .iter()
            .find(|word| has_word(code, word) && code.contains("::"))
            .copied()
    };
    let found = source
        .code()
        .filter_map(|(line, code)| named(&code).map(|word| (line, word)));
    found
        .map(|(line, word)| source.finding(line, "pure", format!("no {word} here; take it as an argument")))
        .collect()
}

/// `agent/src/policy/path.rs` is `policy::path`.
fn module(path: &str) -> Option<String> {
    let inner = path.strip_prefix("agent/src/")?.strip_suffix(".rs")?;
    Some(inner.replace('/', "::"))
}

fn top(module: &str) -> &str {
    module.split("::").next().unwrap_or(module)
}

/// The entry that fits a path best: `policy::path::NormalPath` is in `policy`.
fn entry(path: &str) -> Option<(&'static str, u8)> {
    let fits = |name: &str| {
        path.strip_prefix(name)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    let all = LAYERS
        .iter()
        .filter(|(name, _)| fits(name))
        .max_by_key(|(name, _)| name.len());
    all.copied()
}

/// Every path that the file's `use crate::` statements name, with the line that the statement begins at.
fn uses(source: &Source) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut statement: Option<(usize, String)> = None;
    for (line, code) in source.code() {
        let code = code.trim();
        if let Some((_, text)) = &mut statement {
            text.push_str(code);
        } else if let Some((before, tail)) = code.split_once("use crate::")
            && (before.is_empty() || before.starts_with("pub"))
        {
            statement = Some((line, tail.to_owned()));
        }
        if let Some((line, text)) = statement.take_if(|(_, text)| text.contains(';')) {
            let tree = text.split(';').next().unwrap_or_default();
            found.extend(expand("", tree).into_iter().map(|path| (line, path)));
        }
    }
    found
}

/// `a::{b, c::{d}}` is `a::b` and `a::c::d`.
fn expand(prefix: &str, tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some((head, rest)) = tree.split_once('{') else {
        let name = tree
            .split(" as ")
            .next()
            .unwrap_or(tree)
            .trim()
            .trim_end_matches("::self");
        return vec![format!("{prefix}{name}").trim_end_matches("::self").to_owned()];
    };
    let inner = rest.strip_suffix('}').unwrap_or(rest);
    let prefix = format!("{prefix}{head}");
    split(inner)
        .into_iter()
        .flat_map(|part| expand(&prefix, part))
        .collect()
}

/// Splits at the commas that are in no braces.
fn split(list: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0_u32, 0, Vec::new());
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&list[start..]);
    parts.retain(|part| !part.trim().is_empty());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> Vec<(usize, &'static str)> {
        check(&Source::new(path, text))
            .into_iter()
            .map(|finding| (finding.line, finding.rule))
            .collect()
    }

    #[test]
    fn trees_are_expanded() {
        assert_eq!(
            expand("", "a::{self, b, c::{d, e as f}}"),
            ["a", "a::b", "a::c::d", "a::c::e"]
        );
    }

    #[test]
    fn down_is_allowed_and_up_is_not() {
        assert!(findings("agent/src/proxy/request.rs", "use crate::policy::Permit;\n").is_empty());
        assert_eq!(
            findings("agent/src/policy/engine.rs", "use crate::tls::ca;\n"),
            [(1, "layer")]
        );
    }

    #[test]
    fn sideways_only_where_the_table_says_so() {
        assert!(findings("agent/src/http/upstream.rs", "use crate::net::splice;\n").is_empty());
        assert_eq!(
            findings("agent/src/net/splice.rs", "\nuse crate::audit::{\n    Log,\n};\n"),
            [(2, "layer")]
        );
        assert!(findings("agent/src/net/peek.rs", "use crate::tls::client_hello;\n").is_empty());
    }

    #[test]
    fn pure_modules_take_facts_as_arguments() {
        assert_eq!(
            findings("agent/src/policy/engine.rs", "let now = Instant::now();\n"),
            [(1, "pure")]
        );
        assert!(findings("agent/src/audit/writer.rs", "let now = Instant::now();\n").is_empty());
    }

    #[test]
    fn a_new_module_needs_a_layer() {
        assert_eq!(findings("agent/src/novelty.rs", "\n"), [(1, "layer")]);
    }
}
