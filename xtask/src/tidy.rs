//! `cargo xtask tidy`: the rules of the repository that no compiler knows.
//!
//! Each finding is one line, `FILE:LINE: RULE: FIX`. The rules are small functions over one file's text.

mod layers;
mod rules;
mod source;

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::cmd::{self, Outcome};

use source::Source;

/// One place that breaks a rule.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Finding {
    path: String,
    line: usize,
    rule: &'static str,
    fix: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.path, self.line, self.rule, self.fix)
    }
}

/// Goes through all files.
pub(crate) fn run() -> Result<Outcome> {
    let root = cmd::root();
    let mut sources = Vec::new();
    collect(&root, &root, &mut sources)?;
    let findings: Vec<_> = sources.iter().flat_map(check).collect();
    for finding in &findings {
        eprintln!("{finding}");
    }
    eprintln!("tidy: {} files, {} findings", sources.len(), findings.len());
    Ok(if findings.is_empty() {
        Outcome::Good
    } else {
        Outcome::No
    })
}

fn check(source: &Source) -> Vec<Finding> {
    let mut findings = rules::for_all(source);
    if source.path.ends_with(".rs") {
        findings.extend(rules::for_rust(source));
        findings.extend(layers::check(source));
    }
    findings
}

/// Reads every text file of ours; what git or cargo made is not ours.
fn collect(root: &Path, dir: &Path, into: &mut Vec<Source>) -> Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("can't list {}", dir.display()))?;
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() && !path.is_symlink() && name != ".git" && name != "target" {
            collect(root, &path, into)?;
        } else if is_text(&name) {
            let text = fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
            let relative = path.strip_prefix(root).unwrap_or(&path);
            into.push(Source::new(&relative.to_string_lossy(), &text));
        }
    }
    Ok(())
}

fn is_text(name: &str) -> bool {
    let kinds = [".rs", ".toml", ".md", ".service", ".sh"];
    name == "run" || kinds.iter().any(|kind| name.ends_with(kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line_with_its_place() {
        let finding = Finding {
            path: "a.rs".into(),
            line: 3,
            rule: "unsafe",
            fix: "move it".into(),
        };
        assert_eq!(finding.to_string(), "a.rs:3: unsafe: move it");
    }
}
