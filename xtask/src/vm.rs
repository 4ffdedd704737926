//! `cargo xtask vm`: boots other kernels in QEMU and runs there, as root, the end-to-end tests of what depends on the
//! kernel, with agent, tests and tools in the guest's memory; and compares what the programs cost the verifier with
//! a baseline.

mod archive;
mod baseline;
mod build;
mod group;
mod guest;
mod kernels;
mod qemu;
mod report;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cmd::{self, Outcome};
use crate::setup;
use crate::test::{Bed, Ran, Tally};

use baseline::Baseline;
pub(crate) use build::lint;

use build::Built;
use group::Group;
use kernels::Line;
use report::{Check, Report};

/// Past this a guest hangs; on a machine with nothing else to do, a quick one takes a minute.
const QUICK_LIMIT: Duration = Duration::from_mins(10);
const FULL_LIMIT: Duration = Duration::from_mins(40);

/// What the command line gives.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Arguments {
    /// Lines of kernels, such as 6.1 or 7.x; all that are known if none is given
    pub(crate) kernels: Vec<String>,
    /// Write what the programs cost the verifier to the baseline, instead of comparing
    #[arg(long)]
    pub(crate) refresh: bool,
    /// One test of each kind only, as CI does
    #[arg(long)]
    pub(crate) quick: bool,
    /// Only tests whose name contains one of these, whichever they are
    #[arg(long, conflicts_with = "quick", value_delimiter = ',')]
    pub(crate) only: Vec<String>,
}

/// Tries the kernels and ends with the closing line.
pub(crate) fn run(arguments: &Arguments) -> Result<Outcome> {
    let ran = all(arguments)?;
    println!("{}", ran.tally());
    Ok(ran.outcome)
}

/// Tries the kernels and prints the table.
pub(crate) fn all(arguments: &Arguments) -> Result<Ran> {
    let lines = chosen(&arguments.kernels)?;
    if let Some(lacking) = lacking() {
        eprintln!("vm: {lacking}");
        let skipped = Tally {
            skipped: u64::try_from(lines.len()).unwrap_or(u64::MAX),
            ..Tally::default()
        };
        let bed = Bed {
            name: "other kernels".to_owned(),
            took: Duration::ZERO,
            tally: skipped,
            places: Vec::new(),
        };
        return Ok(Ran::judged(vec![bed], Outcome::Lacking));
    }
    let reports = attempt_all(&lines, arguments)?;
    println!("{}", report::table(&reports));
    let beds = reports.iter().map(|report| Bed {
        name: format!("Linux {}", report.kernel),
        took: report.took,
        tally: report.tally(),
        places: Vec::new(),
    });
    Ok(Ran::judged(beds.collect(), Outcome::Good))
}

fn attempt_all(lines: &[&Line], arguments: &Arguments) -> Result<Vec<Report>> {
    setup::vm()?;
    let guest = cmd::root().join("target/vm/guest.cpio");
    fs::create_dir_all(cmd::root().join("target/vm")).context("can't make target/vm")?;
    let built = build::all()?;
    guest::write(&built, &guest)?;
    let mut baseline = Baseline::read()?;
    let mut reports = Vec::new();
    for line in lines {
        let started = Instant::now();
        let tried = attempt(line, &guest, &built, arguments);
        let mut report = tried.unwrap_or_else(|error| Report::failed(line.name, &format!("{error:#}")));
        if !report.verified.is_empty() {
            let check = baseline.check(line.name, &report.verified, arguments.refresh);
            report.checks.push(check);
        }
        report.explain();
        report.took = started.elapsed();
        reports.push(report);
    }
    if arguments.refresh {
        baseline.write()?;
    }
    Ok(reports)
}

fn attempt(line: &Line, guest: &Path, built: &Built, arguments: &Arguments) -> Result<Report> {
    let started = Instant::now();
    let kernel = line.fetch()?;
    let fetched = Check::of(
        "fetched",
        Tally {
            passed: 1,
            ..Tally::default()
        },
        started.elapsed(),
    );
    let log = cmd::root().join(format!("target/vm/log-{}", line.name));
    eprintln!(
        "vm: {} is {}; as it goes: {}",
        line.name,
        kernel.release,
        log.display()
    );
    let filters: Vec<_> = arguments.only.iter().map(String::as_str).collect();
    let asked = [Group {
        name: "asked for",
        filters: &filters,
    }];
    let (groups, limit): (&[Group<'_>], _) = match (line.lacks.is_empty(), arguments.quick) {
        _ if !filters.is_empty() => (&asked, FULL_LIMIT),
        (false, _) => (group::LACKING, QUICK_LIMIT),
        (true, true) => (group::QUICK, QUICK_LIMIT),
        (true, false) => (group::FULL, FULL_LIMIT),
    };
    let table = group::table(groups, !filters.is_empty());
    let session = qemu::run(&kernel, guest, built, &table, &log, limit)?;
    let mut report = report::read(line, &kernel, &session, groups);
    report.checks.insert(0, fetched);
    Ok(report)
}

fn chosen(names: &[String]) -> Result<Vec<&'static Line>> {
    if names.is_empty() {
        return Ok(kernels::LINES.iter().collect());
    }
    let find = |name: &String| {
        let Some(line) = kernels::LINES.iter().find(|line| line.name == name) else {
            let known: Vec<_> = kernels::LINES.iter().map(|line| line.name).collect();
            bail!(
                "{name} is no kernel that is known here; there are {}",
                known.join(", ")
            );
        };
        Ok(line)
    };
    names.iter().map(find).collect()
}

/// What this machine lacks to boot any kernel; `None` if nothing.
fn lacking() -> Option<String> {
    if std::env::consts::ARCH != "x86_64" {
        return Some(
            "the guest is made from this machine's programs, and the kernels are x86_64's".to_owned(),
        );
    }
    if cmd::find("apt-get").is_none() {
        return Some("kernels come from Debian's mirror, and this is no Debian (no apt-get)".to_owned());
    }
    let able = cmd::is_root() || cmd::find("qemu-system-x86_64").is_some();
    (!able).then(|| "installing QEMU needs root: sudo cargo xtask vm".to_owned())
}
