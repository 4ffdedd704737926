//! `cargo xtask ci`: check, tidy, test and a look at other kernels in one run; each check counts as one test in the closing line.

use anyhow::Result;

use crate::cmd::Outcome;
use crate::test::{Ran, Tally};
use crate::{check, setup, test, tidy, vm};

/// Runs everything, whatever fails, and prints the closing line last.
pub(crate) fn run() -> Result<Outcome> {
    setup::all()?;
    let mut tally = Tally::default();
    for check in check::checks() {
        count(&mut tally, check::passes(check));
    }
    count(&mut tally, Some(tidy::run()? == Outcome::Good));
    let mut lacks = false;
    // On every kernel, but not every test: all of them are for `cargo xtask test --all`.
    let quick = vm::Arguments {
        quick: true,
        ..vm::Arguments::default()
    };
    let runs: [(_, &dyn Fn() -> Result<Ran>); 2] = [
        ("the tests can't be run", &|| test::all(None)),
        ("other kernels can't be tried", &|| vm::all(&quick)),
    ];
    for (otherwise, run) in runs {
        match run() {
            Ok(ran) => {
                tally.add(ran.tally());
                lacks |= ran.outcome == Outcome::Lacking;
            }
            Err(error) => {
                eprintln!("ci: {otherwise}: {error:#}");
                tally.failed += 1;
            }
        }
    }
    println!("{tally}");
    Ok(match tally.failed {
        0 if lacks => Outcome::Lacking,
        0 => Outcome::Good,
        _ => Outcome::No,
    })
}

fn count(tally: &mut Tally, passed: Option<bool>) {
    match passed {
        Some(true) => tally.passed += 1,
        Some(false) => tally.failed += 1,
        None => tally.skipped += 1,
    }
}
