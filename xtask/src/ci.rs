//! `cargo xtask ci`: check, tidy and test in one run; each check counts as one test in the closing line.

use anyhow::Result;

use crate::cmd::Outcome;
use crate::test::Tally;
use crate::{check, setup, test, tidy};

/// Runs everything, whatever fails, and prints the closing line last.
pub(crate) fn run() -> Result<Outcome> {
    setup::all()?;
    let mut tally = Tally::default();
    for check in check::checks() {
        count(&mut tally, check::passes(check));
    }
    count(&mut tally, Some(tidy::run()? == Outcome::Good));
    let tested = test::all(None);
    let outcome = match &tested {
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
