//! The agent's own unit file, as systemd's offline checks see it.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

/// In tenths, as `--threshold` takes it. What is left is what the agent is for; the unit file says so line by line.
const MOST_EXPOSED: &str = "--threshold=30";

const UNIT: &str = include_str!("../../agent/dist/callgate.service");

/// Runs systemd-analyze on the unit, with a program that is there in the place of the agent's; gives success and output.
fn analyze(args: &[&str]) -> Result<(bool, String)> {
    let place = tempfile::tempdir()?;
    let file = place.path().join("callgate.service");
    // The check of the manual page starts man(1), which need not be there.
    let without_manual = UNIT.replace("Documentation=man:callgate(8)\n", "");
    fs::write(&file, without_manual.replace("/usr/bin/callgate", "/bin/true"))?;
    let output = Command::new("systemd-analyze")
        .args(args)
        .arg(&file)
        .output()
        .context("systemd-analyze (package systemd)")?;
    let said = [output.stdout, output.stderr].concat();
    Ok((
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    ))
}

#[test]
fn the_agents_unit_is_no_more_exposed_than_its_job_demands() -> Result<()> {
    let (good, said) = analyze(&["security", "--offline=yes", "--no-pager", MOST_EXPOSED])?;
    assert!(good, "{said}");
    Ok(())
}

/// One line of `systemd-analyze security --json`.
#[derive(Debug, Deserialize)]
struct Judged {
    name: String,
    exposure: Option<String>,
}

/// The word under which the unit file explains a line: the value if that is what counts, else the setting.
fn word(name: &str) -> &str {
    let (setting, value) = name.split_once('=').unwrap_or((name, ""));
    match setting {
        "CapabilityBoundingSet" => "CAP_*",
        "RestrictAddressFamilies" => "AF_*",
        "SystemCallFilter" => value.trim_start_matches('~'),
        _ => setting,
    }
}

#[test]
fn each_exposure_that_systemd_still_counts_is_explained_in_the_unit_file() -> Result<()> {
    let (_, explained) = UNIT
        .split_once("still counts, with the reason:")
        .context("no list")?;
    let explained: String = explained
        .lines()
        .take_while(|line| !line.starts_with('['))
        .collect();
    let (_, said) = analyze(&["security", "--offline=yes", "--json=short"])?;
    let lines: Vec<Judged> = serde_json::from_str(&said).with_context(|| said.clone())?;
    let counts = |line: &&Judged| {
        line.exposure
            .as_deref()
            .is_some_and(|much| much.parse::<f64>().is_ok_and(|much| much > 0.0))
    };
    let counted: Vec<_> = lines.iter().filter(counts).collect();
    assert!(counted.len() > 5, "{lines:?}");
    for line in counted {
        assert!(explained.contains(word(&line.name)), "{line:?} is not explained");
    }
    Ok(())
}

#[test]
fn systemd_finds_nothing_wrong_with_the_agents_unit() -> Result<()> {
    let (good, said) = analyze(&["verify"])?;
    assert!(good && said.is_empty(), "{said}");
    Ok(())
}
