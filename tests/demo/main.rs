//! The whole job on real connections, in a sandbox of its own: `cargo xtask demo`.
//!
//! With `--json` standard output is one JSON document; progress goes to standard error either way. Exit code 0
//! if every step went as expected, 1 if one did not, 3 if the demo can't run here.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "showing is what this program is for"
)]

mod interrupt;
mod report;
mod steps;
mod story;

use std::process::ExitCode;

use harness::Feature;

use crate::report::Report;

fn main() -> ExitCode {
    let json = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--json") => true,
        Some(other) => {
            eprintln!("callgate-demo: unknown argument {other}; the only one is --json");
            return ExitCode::from(2);
        }
    };
    let needed = [Feature::Root, Feature::CgroupV2, Feature::Btf, Feature::Agent];
    if let Some(reason) = needed.into_iter().find_map(Feature::missing) {
        eprintln!("callgate-demo: can't run here: {reason}");
        return ExitCode::from(3);
    }
    let mut report = Report::default();
    if let Err(error) = story::tell(&mut report) {
        report.step("the sandbox is set up", "done", format!("{error:#}"), false);
    }
    let text = if json { report.json() } else { report.text() };
    println!("{}", text.trim_end());
    if report.ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
