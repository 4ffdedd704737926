//! `cargo xtask ci`: check, tidy, test and a look at other kernels in one run; each check counts as one test in the closing line.

use anyhow::Result;

use crate::cmd::Outcome;
use crate::test::Tally;
use crate::{check, setup, test, tidy, vm};

/// Runs everything, whatever fails, and prints the closing line last.
pub(crate) fn run() -> Result<Outcome> {
    setup::all()?;
    let mut tally = Tally::default();
    for check in check::checks() {
        count(&mut tally, check::passes(check));
    }
    count(&mut tally, Some(tidy::run()? == Outcome::Good));
    let tested = test::all(None);
    let mut outcome = match &tested {
        Ok((tests, outcome)) => {
            tally.add(*tests);
            *outcome
        }
        Err(error) => {
            eprintln!("ci: the tests can't be run: {error:#}");
            tally.failed += 1;
            Outcome::No
        }
    };
    // On every kernel, but not every test: all of them are for `cargo xtask test --all`.
    let quick = vm::Arguments {
        quick: true,
        ..vm::Arguments::default()
    };
    match vm::all(&quick) {
        Ok((kernels, Outcome::Lacking)) => {
            tally.add(kernels);
            outcome = Outcome::Lacking;
        }
        Ok((kernels, _)) => tally.add(kernels),
        Err(error) => {
            eprintln!("ci: other kernels can't be tried: {error:#}");
            tally.failed += 1;
        }
    }
    println!("{tally}");
    Ok(if tally.failed > 0 { Outcome::No } else { outcome })
}

fn count(tally: &mut Tally, passed: Option<bool>) {
    match passed {
        Some(true) => tally.passed += 1,
        Some(false) => tally.failed += 1,
        None => tally.skipped += 1,
    }
}
