//! Counting tests from what the runners write.

use std::fmt;
use std::time::Duration;

use super::times::Place;
use crate::cmd::Outcome;

/// The closing line: `N passed, N failed, N skipped`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    /// Tests that skipped themselves were counted as passed by their runner.
    pub(crate) fn move_to_skipped(&mut self, count: u64) {
        self.passed = self.passed.saturating_sub(count);
        self.skipped += count;
    }

    /// Adds one line of output, if it is a runner's summary. What a failed test printed is shown indented, with the
    /// summary of its own process in it.
    pub(crate) fn read(&mut self, line: &str) {
        if let Some(counts) = line.strip_prefix("test result: ") {
            let counts = counts.split_once(". ").map_or(counts, |(_, rest)| rest);
            self.add(parse(counts, ';', "ignored"));
        } else if let Some(summary) = line.trim_start().strip_prefix("Summary [") {
            // What a filter leaves out nextest calls skipped; it was not asked for, so it is not counted.
            let counts = summary.split_once("run: ").map_or("", |(_, rest)| rest);
            self.add(parse(counts, ',', "ignored"));
        }
    }
}

/// Where tests ran, how long that took, what came of it.
#[derive(Debug)]
pub(crate) struct Bed {
    pub(crate) name: String,
    pub(crate) took: Duration,
    pub(crate) tally: Tally,
    /// Of what that time is made, where there are places of several kinds in it: each test's own time.
    pub(crate) places: Vec<Place>,
}

impl fmt::Display for Bed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (took, name, tally) = (self.took.as_secs_f64(), &self.name, self.tally);
        write!(f, "{took:>7.1} s  {name}: {tally}")?;
        if !self.places.is_empty() {
            write!(f, "; by each test's own time, of which some ran side by side:")?;
        }
        self.places.iter().try_for_each(|place| write!(f, "\n{place}"))
    }
}

/// What was run.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) beds: Vec<Bed>,
    /// Also says whether something could not be run.
    pub(crate) outcome: Outcome,
}

impl Ran {
    /// What came of all of it.
    pub(crate) fn tally(&self) -> Tally {
        self.beds.iter().fold(Tally::default(), |mut sum, bed| {
            sum.add(bed.tally);
            sum
        })
    }

    /// The outcome, unless a test failed.
    pub(crate) fn judged(beds: Vec<Bed>, otherwise: Outcome) -> Self {
        let ran = Self {
            beds,
            outcome: otherwise,
        };
        let outcome = if ran.tally().failed > 0 {
            Outcome::No
        } else {
            otherwise
        };
        Self { outcome, ..ran }
    }
}

/// Reads `3 passed`, `1 failed`, ... between separators; nextest adds remarks in brackets.
fn parse(counts: &str, separator: char, skipped: &str) -> Tally {
    let mut tally = Tally::default();
    for part in counts.split(separator) {
        let mut words = part.split_whitespace();
        let (Some(Ok(number)), Some(word)) = (words.next().map(str::parse::<u64>), words.next()) else {
            continue;
        };
        match word {
            "passed" => tally.passed += number,
            "failed" | "timed" => tally.failed += number,
            word if word == skipped => tally.skipped += number,
            _ => {}
        }
    }
    tally
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> (u64, u64, u64) {
        let mut tally = Tally::default();
        tally.read(line);
        (tally.passed, tally.failed, tally.skipped)
    }

    #[test]
    fn cargos_runner() {
        let line = "test result: FAILED. 12 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.2s";
        assert_eq!(read(line), (12, 1, 2));
    }

    #[test]
    fn nextest() {
        assert_eq!(
            read("     Summary [   0.012s] 3 tests run: 2 passed (1 slow), 1 failed, 0 skipped"),
            (2, 1, 0)
        );
        assert_eq!(
            read("     Summary [   0.012s] 1 test run: 1 passed, 40 skipped"),
            (1, 0, 0)
        );
        assert_eq!(
            read("Summary [ 60.0s] 2 tests run: 1 passed, 1 timed out, 0 skipped"),
            (1, 1, 0)
        );
    }

    #[test]
    fn other_lines_count_nothing() {
        assert_eq!(read("test it_works ... 3 passed"), (0, 0, 0));
        assert_eq!(
            read("    test result: FAILED. 0 passed; 1 failed; 0 ignored"),
            (0, 0, 0)
        );
    }

    #[test]
    fn the_closing_line() {
        let mut tally = Tally {
            passed: 10,
            failed: 0,
            skipped: 1,
        };
        tally.move_to_skipped(2);
        assert_eq!(tally.to_string(), "8 passed, 0 failed, 3 skipped");
    }

    #[test]
    fn each_bed_says_how_long_it_took_and_a_failure_in_one_is_one_of_all() {
        let bed = |name: &str, failed| Bed {
            name: name.to_owned(),
            took: Duration::from_millis(61_250),
            tally: Tally {
                passed: 3,
                failed,
                skipped: 0,
            },
            places: Vec::new(),
        };
        let good = Ran::judged(vec![bed("one", 0), bed("other", 0)], Outcome::Lacking);
        assert_eq!(good.outcome, Outcome::Lacking);
        assert_eq!(good.tally().passed, 6);
        assert_eq!(
            good.beds[0].to_string(),
            "   61.2 s  one: 3 passed, 0 failed, 0 skipped"
        );
        let bad = Ran::judged(vec![bed("one", 0), bed("other", 1)], Outcome::Lacking);
        assert_eq!(bad.outcome, Outcome::No);
    }
}
