//! How long tests took, each for itself, as nextest tells it; and where they ran.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

/// As nextest calls the binaries of the package that has the end-to-end tests, and these themselves.
const PACKAGE: &str = "callgate-tests";
const END_TO_END: &str = "callgate-tests::e2e";

/// Tests of that package by binary and name, with the time that each took. cargo's own runner does not tell it: then there are none.
#[derive(Debug, Default)]
pub(crate) struct Times(BTreeMap<(String, String), Duration>);

/// Tests that ran in one kind of place, by group.
#[derive(Debug)]
pub(crate) struct Place {
    name: &'static str,
    groups: BTreeMap<String, Sum>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    tests: u64,
    took: Duration,
}

impl Times {
    /// Takes over one line of output, if it tells of a test that has ended. Of those that failed nextest tells twice.
    pub(crate) fn read(&mut self, line: &str) {
        if let Some((binary, test, took)) = ended(line)
            && binary.starts_with(PACKAGE)
        {
            self.0.insert((binary.to_owned(), test.to_owned()), took);
        }
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// The tests, those that `booted` a Debian apart. A group is a module of the end-to-end tests; the harness's own
    /// tests are another.
    pub(crate) fn places(&self, booted: &BTreeSet<String>) -> Vec<Place> {
        let place = |name, there: bool| {
            let mut groups = BTreeMap::<String, Sum>::new();
            for ((binary, test), took) in &self.0 {
                if (binary == END_TO_END && booted.contains(test)) == there {
                    let sum = groups.entry(group(binary, test).to_owned()).or_default();
                    sum.tests += 1;
                    sum.took += *took;
                }
            }
            Place { name, groups }
        };
        let places = [place("sandbox", false), place("booted Debians", true)];
        let any = |place: &Place| !place.groups.is_empty();
        places.into_iter().filter(any).collect()
    }
}

/// Reads `PASS [   1.234s] (  7/300) BINARY TEST`, or with another word for how it ended. One that is only slow so far has
/// `>` before the time, and a summary says more behind it.
fn ended(line: &str) -> Option<(&str, &str, Duration)> {
    let (how, rest) = line.trim_start().split_once(" [")?;
    let (took, rest) = rest.split_once("s] ")?;
    if how.contains(|c: char| c.is_ascii_lowercase()) {
        return None;
    }
    let took = Duration::try_from_secs_f64(took.trim().parse().ok()?).ok()?;
    let rest = rest.trim_start();
    let rest = match rest.strip_prefix('(') {
        Some(counted) => counted.split_once(')')?.1,
        None => rest,
    };
    let mut words = rest.split_whitespace();
    match (words.next(), words.next(), words.next()) {
        (Some(binary), Some(test), None) => Some((binary, test, took)),
        _ => None,
    }
}

fn group<'a>(binary: &'a str, test: &'a str) -> &'a str {
    if binary == END_TO_END {
        test.split_once("::").map_or(test, |(module, _)| module)
    } else {
        binary
    }
}

impl Place {
    fn sum(&self) -> Sum {
        Sum {
            tests: self.groups.values().map(|sum| sum.tests).sum(),
            took: self.groups.values().map(|sum| sum.took).sum(),
        }
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let noun = if self.tests == 1 { "test" } else { "tests" };
        write!(f, "{} {noun}", self.tests)
    }
}

impl fmt::Display for Place {
    /// The place, then its groups, the longest first.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |sum: &Sum| sum.took.as_secs_f64();
        let all = self.sum();
        write!(f, "{:>9.1} s  {}: {all}", seconds(&all), self.name)?;
        let mut groups: Vec<_> = self.groups.iter().collect();
        groups.sort_by_key(|(_, sum)| std::cmp::Reverse(sum.took));
        for (name, sum) in groups {
            write!(f, "\n{:>11.1} s  {name}: {sum}", seconds(sum))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "\
        PASS [   0.500s] (  1/300) callgate-tests::e2e netns::kept::a_name
        SLOW [> 60.000s] (─────────) callgate-tests::e2e units::a_name
        PASS [  61.000s] (  2/300) callgate-tests::e2e units::a_name
        PASS [   2.000s] (  3/300) callgate-tests::e2e units::offline
        FAIL [   1.000s] (  4/300) callgate-tests::e2e netns::other
        PASS [   0.250s] (  5/300) callgate-tests units::a_name
        PASS [   7.000s] (  6/300) xtask::bin/xtask units::a_name
     Summary [  62.100s] 5 tests run: 4 passed (1 slow), 1 failed, 0 skipped
        FAIL [   1.000s] (  4/300) callgate-tests::e2e netns::other";

    #[test]
    fn each_test_counts_once_where_it_ran() {
        let mut times = Times::default();
        SAID.lines().for_each(|line| times.read(line));
        let shown: Vec<_> = times
            .places(&BTreeSet::from(["units::a_name".to_owned()]))
            .iter()
            .map(ToString::to_string)
            .collect();
        let sandbox = [
            "      3.8 s  sandbox: 4 tests",
            "        2.0 s  units: 1 test",
            "        1.5 s  netns: 2 tests",
            "        0.2 s  callgate-tests: 1 test",
        ];
        let booted = [
            "     61.0 s  booted Debians: 1 test",
            "       61.0 s  units: 1 test",
        ];
        assert_eq!(shown, [sandbox.join("\n"), booted.join("\n")]);
    }

    #[test]
    fn words_of_other_kinds_are_no_test() {
        for line in [
            "    Finished `test` profile [unoptimized + debuginfo] target(s) in 0.5s",
            " Terminating [> 240.000s] callgate-tests::e2e units::a_name",
            "test units::a_name ... ok",
            "",
        ] {
            assert_eq!(ended(line), None, "{line}");
        }
    }

    #[test]
    fn without_times_there_is_no_place() {
        assert!(Times::default().places(&BTreeSet::new()).is_empty());
    }
}
