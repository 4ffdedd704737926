//! The oracle: the audit records that the agent wrote, and what a test expects of them.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, DirEntry};
use std::io;
use std::os::unix::fs::DirEntryExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;

use crate::wait;

/// One audit record.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Record(Value);

/// A field that a record must have: its dotted name and its value.
pub type Expected<'a> = (&'a str, Value);

impl Record {
    /// The value of a field, `null` and absent alike: `record.field("exe.path")`.
    #[must_use]
    pub fn field(&self, name: &str) -> &Value {
        let nested = name.split('.').try_fold(&self.0, |value, part| value.get(part));
        nested.or_else(|| self.0.get(name)).unwrap_or(&Value::Null)
    }

    /// The field as a person reads it: text without quotes, `-` for nothing.
    #[must_use]
    pub fn text(&self, name: &str) -> String {
        let value = self.field(name);
        if value.is_null() {
            return "-".to_owned();
        }
        value
            .as_str()
            .map_or_else(|| value.to_string(), ToOwned::to_owned)
    }

    fn differences<'a>(&self, expected: &'a [Expected<'a>]) -> Vec<&'a Expected<'a>> {
        expected
            .iter()
            .filter(|(name, value)| self.field(name) != value)
            .collect()
    }
}

/// Reads all records of a log of JSON lines: those of its rotated files (`.2` is older than `.1`), then those of the file
/// itself; a last line that is still being written is left out.
///
/// # Errors
/// If a file can't be read or a line is no JSON. No file is no records.
pub fn read(file: &Path) -> Result<Vec<Record>> {
    loop {
        let before = parts(file)?;
        let read = before.iter().map(|part| text(&part.path));
        let texts: Vec<_> = read.collect::<Result<_>>()?;
        // If the log was rotated meanwhile, others were read than those that were found.
        if parts(file)? == before {
            return texts.iter().flat_map(|text| text.lines()).map(parse).collect();
        }
    }
}

/// A file of a log.
#[derive(Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Part {
    /// The higher, the older; the log itself has 0.
    number: u32,
    path: PathBuf,
    inode: u64,
}

impl Part {
    fn find(entry: &DirEntry, log: &OsStr) -> Option<Self> {
        let name = entry.file_name();
        let suffix = name.to_str()?.strip_prefix(log.to_str()?)?;
        let number = match suffix {
            "" => 0,
            _ => suffix.strip_prefix('.')?.parse().ok()?,
        };
        let (path, inode) = (entry.path(), entry.ino());
        Some(Self { number, path, inode })
    }
}

/// What there is of a log, the oldest first.
fn parts(log: &Path) -> Result<Vec<Part>> {
    let unread = || format!("can't look for the audit log {}", log.display());
    let dir = log.parent().with_context(unread)?;
    let name = log.file_name().with_context(unread)?;
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(unread)?,
    };
    let mut parts = Vec::new();
    for entry in entries {
        parts.extend(Part::find(&entry.with_context(unread)?, name));
    }
    parts.sort_unstable_by(|one, other| other.cmp(one));
    Ok(parts)
}

/// The whole lines of a file; nothing if it is gone.
fn text(file: &Path) -> Result<String> {
    let text = match fs::read_to_string(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        other => other.with_context(|| format!("can't read the audit file {}", file.display()))?,
    };
    let whole = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
    Ok(whole.to_owned())
}

fn parse(line: &str) -> Result<Record> {
    serde_json::from_str(line)
        .map(Record)
        .with_context(|| format!("not a record: {line}"))
}

/// The records that have all these fields.
#[must_use]
pub fn matching<'a>(records: &'a [Record], expected: &[Expected<'_>]) -> Vec<&'a Record> {
    records
        .iter()
        .filter(|record| record.differences(expected).is_empty())
        .collect()
}

/// Waits until `read` gives exactly one record with these fields.
///
/// # Errors
/// If there is none in time, with the closest misses; or if there are several.
pub fn expect(read: impl Fn() -> Result<Vec<Record>>, expected: &[Expected<'_>]) -> Result<Record> {
    let mut last = Vec::new();
    let found = wait::until("a record", wait::PATIENCE, || {
        last = read().ok()?;
        let all = matching(&last, expected);
        (!all.is_empty()).then(|| all.into_iter().cloned().collect::<Vec<_>>())
    });
    match found.as_deref() {
        Ok([one]) => Ok(one.clone()),
        Ok(several) => bail!("{} records where one was expected: {several:?}", several.len()),
        Err(_) => bail!("{}", closest_misses(&last, expected)),
    }
}

/// Says why none fits: the nearest records first, each with the fields that differ.
#[must_use]
pub fn closest_misses(records: &[Record], expected: &[Expected<'_>]) -> String {
    let mut misses: Vec<_> = records
        .iter()
        .map(|record| (record.differences(expected), record))
        .collect();
    misses.sort_by_key(|(differences, _)| differences.len());
    let mut text = format!("none of {} records has", records.len());
    for (name, value) in expected {
        write!(text, " {name}={value}").unwrap_or_default();
    }
    for (differences, record) in misses.iter().take(5) {
        text.push_str("\n  nearest:");
        for (name, value) in differences {
            write!(text, " {name}={} (not {value})", record.field(name)).unwrap_or_default();
        }
        write!(text, "\n           {}", record.0).unwrap_or_default();
    }
    text
}

/// Waits for exactly one record with these fields and gives it: `assert_record!(world, "status" = 200)`. Fails
/// with the nearest records, field by field.
#[macro_export]
macro_rules! assert_record {
    ($world:expr, $($name:literal = $value:expr),+ $(,)?) => {{
        let expected = [$(($name, $crate::audit::to_value($value))),+];
        match $world.expect_record(&expected) {
            Ok(record) => record,
            Err(misses) => panic!("{misses:#}"),
        }
    }};
}

/// The JSON form of an expected value.
#[must_use]
pub fn to_value(value: impl Into<Value>) -> Value {
    value.into()
}

#[cfg(test)]
mod tests {
    use callgate::audit::file;
    use serde_json::json;

    use super::*;

    fn records() -> Vec<Record> {
        vec![
            Record(json!({"workload": "billing", "status": 200, "exe": {"path": "/usr/bin/curl"}})),
            Record(json!({"workload": "billing", "status": 403, "exe": null})),
        ]
    }

    fn numbers(log: &Path) -> Vec<String> {
        let records = read(log).unwrap();
        records.iter().map(|one| one.text("n")).collect()
    }

    #[test]
    fn fields_are_found_by_dotted_name() {
        assert_eq!(records()[0].text("exe.path"), "/usr/bin/curl");
        assert_eq!(records()[1].text("exe.path"), "-");
    }

    #[test]
    fn all_expected_fields_must_agree() {
        let found = records();
        assert_eq!(matching(&found, &[("workload", "billing".into())]).len(), 2);
        assert_eq!(
            matching(&found, &[("workload", "billing".into()), ("status", 403.into())]).len(),
            1
        );
    }

    #[test]
    fn the_nearest_record_comes_first_with_its_difference() {
        let text = closest_misses(
            &records(),
            &[("status", 201.into()), ("exe.path", "/usr/bin/curl".into())],
        );
        let nearest = text.lines().nth(1).unwrap();
        assert_eq!(nearest, "  nearest: status=200 (not 201)");
    }

    #[test]
    fn an_unfinished_last_line_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("audit");
        fs::write(&file, "{\"a\":1}\n{\"b\":").unwrap();
        assert_eq!(read(&file).unwrap().len(), 1);
        assert!(read(&dir.path().join("none")).unwrap().is_empty());
    }

    #[test]
    fn rotated_files_are_read_first_and_the_oldest_of_them_before_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("audit");
        for (name, text) in [
            ("audit", "{\"n\":4}\n{\"n\":"),
            ("audit.1", "{\"n\":3}\n"),
            ("audit.2", "{\"n\":2}\n{\"torn\":"),
            ("audit.10", "{\"n\":1}\n"),
            ("audit.1.gz", "no record\n"),
            ("audits", "no record\n"),
        ] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        assert_eq!(numbers(&log), ["1", "2", "3", "4"]);
    }

    #[test]
    fn no_record_is_lost_or_read_twice_while_the_log_is_rotated() {
        const ROUNDS: u32 = 20;
        const RECORDS: u32 = 20;
        for _ in 0..ROUNDS {
            let dir = tempfile::tempdir().unwrap();
            let log = dir.path().join("audit");
            let writing = std::thread::spawn({
                let log = log.clone();
                move || {
                    for n in 0..RECORDS {
                        file::rotate(&log, 1, RECORDS).unwrap();
                        fs::write(&log, format!("{{\"n\":{n}}}\n")).unwrap();
                    }
                }
            });
            while !writing.is_finished() {
                let numbers = numbers(&log);
                let expected: Vec<_> = (0..numbers.len()).map(|n| n.to_string()).collect();
                assert_eq!(numbers, expected);
            }
            writing.join().unwrap();
            assert_eq!(numbers(&log).len(), RECORDS as usize);
        }
    }
}
