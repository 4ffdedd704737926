//! What single steps cost: criterion's benchmarks, and their times as a table.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::cmd::{self, Outcome};
use crate::setup;

/// Runs them; criterion compares with the last run by itself.
pub(super) fn measure(filter: Option<&str>, write: bool) -> Result<Outcome> {
    setup::all()?;
    let begun = SystemTime::now();
    let mut bench = cmd::cargo(["bench", "--package", "callgate", "--benches", "--", "--noplot"]);
    bench.args(filter);
    cmd::run(setup::prepare(bench))?;
    let mut times = BTreeMap::new();
    collect(&cmd::root().join("target/criterion"), begun, &mut times)?;
    let table = table(&times);
    println!("{table}");
    if write {
        super::write("steps", &table)?;
    }
    Ok(Outcome::Good)
}

/// Finds the results that are not older than `begun`: nanoseconds by the benchmark's name, and how sure they are.
fn collect(dir: &Path, begun: SystemTime, times: &mut BTreeMap<String, Time>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("can't read {}", dir.display()))? {
        let path = entry?.path();
        if !path.is_dir() {
            continue;
        }
        let estimates = path.join("estimates.json");
        if path.file_name().is_some_and(|name| name == "new") && estimates.is_file() {
            if fs::metadata(&estimates)?.modified()? >= begun {
                let name = read(&path.join("benchmark.json"))?;
                let name = name["title"].as_str().context("a benchmark without a title")?;
                times.insert(name.to_owned(), Time::of(&read(&estimates)?)?);
            }
        } else {
            collect(&path, begun, times)?;
        }
    }
    Ok(())
}

fn read(file: &Path) -> Result<Value> {
    let text = fs::read_to_string(file).with_context(|| format!("can't read {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not criterion's", file.display()))
}

/// A median, with the bounds that it lies in with 95 % confidence. Nanoseconds.
struct Time {
    median: f64,
    low: f64,
    high: f64,
}

impl Time {
    fn of(estimates: &Value) -> Result<Self> {
        let median = &estimates["median"];
        let number = |value: &Value| value.as_f64().context("a median without a number");
        Ok(Self {
            median: number(&median["point_estimate"])?,
            low: number(&median["confidence_interval"]["lower_bound"])?,
            high: number(&median["confidence_interval"]["upper_bound"])?,
        })
    }
}

fn table(times: &BTreeMap<String, Time>) -> String {
    let row = |(name, time): (&String, &Time)| {
        format!(
            "| {name} | {} | {} to {} |\n",
            in_words(time.median),
            in_words(time.low),
            in_words(time.high)
        )
    };
    let rows: String = times.iter().map(row).collect();
    format!("| step | median | 95 % sure |\n|---|---|---|\n{rows}")
}

/// Three digits and a unit.
fn in_words(nanoseconds: f64) -> String {
    let (value, unit) = match nanoseconds {
        ns if ns < 1e3 => (ns, "ns"),
        ns if ns < 1e6 => (ns / 1e3, "us"),
        ns => (ns / 1e6, "ms"),
    };
    let digits = if value < 10.0 {
        2
    } else {
        usize::from(value < 100.0)
    };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits() {
        for (nanoseconds, expected) in [
            (0.5, "0.50 ns"),
            (12.34, "12.3 ns"),
            (999.0, "999 ns"),
            (1234.5, "1.23 us"),
            (2_500_000.0, "2.50 ms"),
        ] {
            assert_eq!(in_words(nanoseconds), expected);
        }
    }

    #[test]
    fn results_of_an_earlier_run_are_left_out() {
        let dir = std::env::temp_dir().join(format!("callgate-steps-{}", std::process::id()));
        let new = dir.join("group/one/new");
        fs::create_dir_all(&new).unwrap();
        fs::write(new.join("benchmark.json"), r#"{"title": "group/one"}"#).unwrap();
        let estimates = r#"{"median": {"point_estimate": 5, "confidence_interval": {"lower_bound": 4, "upper_bound": 6}}}"#;
        fs::write(new.join("estimates.json"), estimates).unwrap();
        let found = |begun| {
            let mut times = BTreeMap::new();
            collect(&dir, begun, &mut times).unwrap();
            table(&times)
        };
        let (now, then) = (
            found(SystemTime::UNIX_EPOCH),
            found(SystemTime::now() + std::time::Duration::from_secs(60)),
        );
        fs::remove_dir_all(&dir).unwrap();
        assert!(
            now.ends_with("| group/one | 5.00 ns | 4.00 ns to 6.00 ns |\n"),
            "{now}"
        );
        assert!(then.ends_with("|---|---|---|\n"), "{then}");
    }
}
