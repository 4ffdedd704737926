//! What each program cost the verifier when it was last looked at: `agent-ebpf/verifier-baseline.toml`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use toml_span::Value;

use super::report::Check;
use crate::cmd;
use crate::test::Tally;

/// How much a count may grow, in percent: a point release of a kernel or a compiler moves it by a little.
const TOLERANCE: u64 = 10;

const HEAD: &str = "\
# How many instructions the kernel's verifier goes through for each program before it accepts it, by kernel and build:
# `release` is the one that the agent embeds, `dev` another way to compile it. Of two cases the larger: workloads on one
# level, and on several. `cargo xtask vm` fails where a count has grown by more than 10 %; `cargo xtask vm --refresh`
# writes this file. The kernel's limit is 1,000,000.
";

/// Counts by program.
pub(crate) type Counts = BTreeMap<String, u64>;
/// Counts by build.
pub(crate) type Builds = BTreeMap<String, Counts>;

/// The file's content, by kernel.
#[derive(Debug, Default)]
pub(crate) struct Baseline(BTreeMap<String, Builds>);

impl Baseline {
    /// Reads the file; one that is not there is empty.
    pub(crate) fn read() -> Result<Self> {
        let file = file();
        if !file.is_file() {
            return Ok(Self::default());
        }
        let text = fs::read_to_string(&file).with_context(|| format!("can't read {}", file.display()))?;
        let parsed = toml_span::parse(&text).with_context(|| format!("{}", file.display()))?;
        Ok(Self(tables(&parsed, |kernel| {
            tables(kernel, |build| tables(build, count))
        })))
    }

    /// Compares a kernel's counts, or takes them over.
    pub(crate) fn check(&mut self, kernel: &str, found: &Builds, refresh: bool) -> Check {
        let faults = if refresh {
            self.0.insert(kernel.to_owned(), found.clone());
            Vec::new()
        } else {
            self.faults(kernel, found)
        };
        let failed = u64::from(!faults.is_empty());
        let tally = Tally {
            passed: 1 - failed,
            failed,
            skipped: 0,
        };
        let mut check = Check::of("verifier costs", tally, Duration::ZERO);
        check.said = faults;
        check
    }

    fn faults(&self, kernel: &str, found: &Builds) -> Vec<String> {
        let mut faults = Vec::new();
        for (build, counts) in found {
            for (program, count) in counts {
                let known = self
                    .0
                    .get(kernel)
                    .and_then(|builds| builds.get(build)?.get(program));
                match known {
                    None => faults.push(format!("{build} {program}: {count}, not in the baseline")),
                    Some(known) if *count * 100 > *known * (100 + TOLERANCE) => {
                        faults.push(format!("{build} {program}: {count}, was {known}"));
                    }
                    Some(_) => {}
                }
            }
        }
        if !faults.is_empty() {
            faults.push("if that is as it should be: cargo xtask vm --refresh".to_owned());
        }
        faults
    }

    /// Writes the file.
    pub(crate) fn write(&self) -> Result<()> {
        let mut text = HEAD.to_owned();
        for (kernel, builds) in &self.0 {
            for (build, counts) in builds {
                writeln!(text, "\n[{kernel:?}.{build}]")?;
                for (program, count) in counts {
                    writeln!(text, "{program} = {count}")?;
                }
            }
        }
        let file = file();
        fs::write(&file, text).with_context(|| format!("can't write {}", file.display()))
    }
}

/// A table whose values are read by `each`; what is no table is an empty one.
fn tables<'v, T>(value: &Value<'v>, each: impl Fn(&Value<'v>) -> T) -> BTreeMap<String, T> {
    let entries = value.as_table().into_iter().flatten();
    entries
        .map(|(key, value)| (key.name.to_string(), each(value)))
        .collect()
}

/// What is no count is one that everything exceeds.
fn count(value: &Value<'_>) -> u64 {
    value
        .as_integer()
        .and_then(|count| u64::try_from(count).ok())
        .unwrap_or(0)
}

fn file() -> PathBuf {
    cmd::root().join("agent-ebpf/verifier-baseline.toml")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn builds(count: u64) -> Builds {
        BTreeMap::from([("release".into(), BTreeMap::from([("cg_connect4".into(), count)]))])
    }

    #[test]
    fn a_count_may_grow_by_a_tenth_and_no_more() {
        let mut baseline = Baseline::default();
        assert_eq!(baseline.check("6.1", &builds(1000), true).tally.failed, 0);
        assert_eq!(baseline.check("6.1", &builds(1100), false).tally.failed, 0);
        let grown = baseline.check("6.1", &builds(1101), false);
        assert_eq!(grown.tally.failed, 1);
        assert!(grown.said[0].contains("1101, was 1000"), "{grown:?}");
    }

    #[test]
    fn what_has_no_baseline_fails() {
        let mut baseline = Baseline::default();
        assert_eq!(baseline.check("6.1", &builds(1), false).tally.failed, 1);
    }
}
