//! What came of one kernel, read off what its guest wrote, and the table of all.

use std::fmt::Write as _;
use std::time::Duration;

use super::baseline::Builds;
use super::group::Group;
use super::kernels::{Kernel, Line};
use super::qemu::Session;
use crate::test::Tally;

/// One thing that was looked at.
#[derive(Debug)]
pub(crate) struct Check {
    pub(crate) name: String,
    pub(crate) tally: Tally,
    pub(crate) took: Duration,
    /// What to show if it failed.
    pub(crate) said: Vec<String>,
}

impl Check {
    pub(crate) fn of(name: &str, tally: Tally, took: Duration) -> Self {
        Self {
            name: name.to_owned(),
            tally,
            took,
            said: Vec::new(),
        }
    }

    fn single(name: &str, passed: bool, took: Duration, said: Vec<String>) -> Self {
        let tally = Tally {
            passed: u64::from(passed),
            failed: u64::from(!passed),
            skipped: 0,
        };
        Self {
            said,
            ..Self::of(name, tally, took)
        }
    }
}

/// One kernel.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) kernel: String,
    /// From the download to the end.
    pub(crate) took: Duration,
    pub(crate) checks: Vec<Check>,
    /// What the verifier went through, by build and program.
    pub(crate) verified: Builds,
}

impl Report {
    /// A kernel that could not be tried.
    pub(crate) fn failed(kernel: &str, why: &str) -> Self {
        Self {
            kernel: kernel.to_owned(),
            took: Duration::ZERO,
            checks: vec![Check::single(
                "fetched",
                false,
                Duration::ZERO,
                vec![why.to_owned()],
            )],
            verified: Builds::new(),
        }
    }

    pub(crate) fn tally(&self) -> Tally {
        self.checks.iter().fold(Tally::default(), |mut sum, check| {
            sum.add(check.tally);
            sum
        })
    }

    /// Shows what failed.
    pub(crate) fn explain(&self) {
        for check in self.checks.iter().filter(|check| check.tally.failed > 0) {
            eprintln!("vm: {}: {} failed:", self.kernel, check.name);
            for line in &check.said {
                eprintln!("    {line}");
            }
        }
    }
}

/// Reads a session.
pub(crate) fn read(line: &Line, kernel: &Kernel, session: &Session, groups: &[Group<'_>]) -> Report {
    let mut checks = vec![boots(session)];
    checks.extend(groups.iter().map(|group| of_group(session, *group)));
    if !line.lacks.is_empty() {
        checks.push(lacks(line, session));
    }
    checks.push(is_sound(session));
    let said = last(&session.lines);
    checks.push(Check::single("powers off", session.ended, session.took, said));
    Report {
        kernel: format!("{} ({})", line.name, kernel.release),
        took: Duration::ZERO,
        checks,
        verified: verified(session),
    }
}

/// `@vm up RELEASE UPTIME`
fn boots(session: &Session) -> Check {
    let up = session.lines.iter().find_map(|line| line.strip_prefix("@vm up "));
    let said = last(&session.console);
    let took = up.and_then(last_number).unwrap_or_default();
    Check::single("boots", up.is_some(), took, said)
}

/// Whether the kernel found no fault in itself.
fn is_sound(session: &Session) -> Check {
    const FAULTS: &[&str] = &["[ cut here ]", "BUG:", "Oops", "Call Trace:", "Kernel panic"];
    let is_fault = |line: &String| FAULTS.iter().any(|fault| line.contains(fault));
    let from = session.console.iter().position(is_fault);
    let said = session.console[from.unwrap_or_default()..].to_vec();
    Check::single("no kernel fault", from.is_none(), Duration::ZERO, said)
}

fn last(lines: &[String]) -> Vec<String> {
    lines[lines.len().saturating_sub(20)..].to_vec()
}

/// What stands between `@vm group WORD UPTIME` and `@vm done WORD CODE UPTIME`.
fn of_group(session: &Session, group: Group<'_>) -> Check {
    let (name, word) = (group.name, group.word());
    let (begin, end) = (format!("@vm group {word} "), format!("@vm done {word} "));
    let from = session.lines.iter().position(|line| line.starts_with(&begin));
    let Some(from) = from else {
        return Check::single(name, false, Duration::ZERO, vec!["it did not begin".to_owned()]);
    };
    let to = session.lines.iter().position(|line| line.starts_with(&end));
    let lines = &session.lines[from + 1..to.unwrap_or(session.lines.len())];
    let mut tally = Tally::default();
    // The last one: what a failed test printed may hold that of a process of its own.
    if let Some(sum) = lines.iter().rfind(|line| line.starts_with("test result: ")) {
        tally.read(sum);
    }
    let at = |index: usize| session.lines.get(index).and_then(|line| last_number(line));
    let took = match (at(from), to.and_then(at)) {
        (Some(from), Some(to)) => to.saturating_sub(from),
        _ => Duration::ZERO,
    };
    let failed = to.is_none_or(|to| !session.lines[to].starts_with(&format!("{end}0 ")));
    // Crashed, cut short, or without a single test.
    if (failed && tally.failed == 0) || tally == Tally::default() {
        tally.failed += 1;
    }
    let skipped = lines.iter().filter(|line| line.starts_with("@vm skip "));
    tally.move_to_skipped(skipped.map(|_| 1).sum());
    Check {
        said: lines.to_vec(),
        ..Check::of(name, tally, took)
    }
}

/// Whether `doctor` says of each feature that is known to be missing that it is.
fn lacks(line: &Line, session: &Session) -> Check {
    let said: Vec<_> = session
        .lines
        .iter()
        .filter_map(|line| line.strip_prefix("@vm doctor "))
        .map(ToOwned::to_owned)
        .collect();
    let named = |feature: &&str| {
        said.iter()
            .any(|line| line.starts_with("FAIL ") && line.contains(*feature))
    };
    Check::single(
        "doctor names it",
        line.lacks.iter().all(named),
        Duration::ZERO,
        said,
    )
}

/// `@vm verified BUILD CASE PROGRAM COUNT`: the largest of each program's cases.
fn verified(session: &Session) -> Builds {
    let mut builds = Builds::new();
    for line in session
        .lines
        .iter()
        .filter_map(|line| line.strip_prefix("@vm verified "))
    {
        let words: Vec<_> = line.split(' ').collect();
        if let [build, _, program, count] = words.as_slice()
            && let Ok(count) = count.parse::<u64>()
        {
            let largest = builds
                .entry((*build).to_owned())
                .or_default()
                .entry((*program).to_owned())
                .or_default();
            *largest = count.max(*largest);
        }
    }
    builds
}

fn last_number(line: &str) -> Option<Duration> {
    let seconds = line.rsplit(' ').next()?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// Kernels by checks.
pub(crate) fn table(reports: &[Report]) -> String {
    let mut text = String::new();
    for report in reports {
        // Writing to a string can't fail.
        writeln!(text, "{}", report.kernel).ok();
        for check in &report.checks {
            let word = if check.tally.failed > 0 { "FAIL" } else { "ok" };
            let took = check.took.as_secs_f64();
            writeln!(
                text,
                "  {word:<5} {:<18} {:>6.1} s  {}",
                check.name, took, check.tally
            )
            .ok();
        }
    }
    text
}
