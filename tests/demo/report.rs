//! What came out, for a person and for a machine.

use std::fmt::Write as _;

use harness::Record;
use serde::Serialize;
use serde_json::json;

/// One comparison.
#[derive(Debug, Serialize)]
pub(crate) struct Step {
    name: String,
    expected: String,
    got: String,
    ok: bool,
}

/// All steps and the audit records.
#[derive(Debug, Default)]
pub(crate) struct Report {
    steps: Vec<Step>,
    records: Vec<Record>,
}

impl Report {
    /// Notes a step and shows it at once.
    pub(crate) fn step(&mut self, name: &str, expected: &str, got: impl Into<String>, ok: bool) {
        let step = Step {
            name: name.to_owned(),
            expected: expected.to_owned(),
            got: got.into(),
            ok,
        };
        eprintln!("  {}", step.line());
        self.steps.push(step);
    }

    pub(crate) fn records(&mut self, records: Vec<Record>) {
        self.records = records;
    }

    pub(crate) fn ok(&self) -> bool {
        !self.steps.is_empty() && self.steps.iter().all(|step| step.ok)
    }

    /// One document.
    pub(crate) fn json(&self) -> String {
        json!({"ok": self.ok(), "steps": self.steps, "records": self.records}).to_string()
    }

    /// The list of steps, then the records as a table.
    pub(crate) fn text(&self) -> String {
        let mut text = String::from("\n");
        for step in &self.steps {
            text.push_str(&step.line());
            text.push('\n');
        }
        if !self.records.is_empty() {
            write!(text, "\nThe audit records:\n\n{}", table(&self.records)).unwrap_or_default();
        }
        let failed = self.steps.iter().filter(|step| !step.ok).count();
        let verdict = match failed {
            0 => "Everything went as it should.".to_owned(),
            n => format!("{n} of {} steps went otherwise.", self.steps.len()),
        };
        write!(text, "\n{verdict}").unwrap_or_default();
        text
    }
}

impl Step {
    fn line(&self) -> String {
        let Self {
            name,
            expected,
            got,
            ok,
        } = self;
        if *ok {
            format!("✓ {name}: {got}")
        } else {
            format!("✗ {name}\n    expected: {expected}\n    got:      {got}")
        }
    }
}

const COLUMNS: [(&str, &[&str]); 8] = [
    ("workload", &["workload"]),
    ("cgroup", &["cgroup.path"]),
    ("pid", &["pid"]),
    ("executable", &["exe.path"]),
    ("call", &["method", "authority", "path", "original_destination"]),
    ("rule", &["rule"]),
    ("credential", &["credential.name"]),
    ("outcome", &["status", "reason"]),
];

/// A plain table; a column with several fields shows those that the record has.
fn table(records: &[Record]) -> String {
    let mut rows = vec![COLUMNS.map(|(title, _)| title.to_owned())];
    rows.extend(
        records
            .iter()
            .map(|record| COLUMNS.map(|column| cell(record, column))),
    );
    let widths = std::array::from_fn::<_, { COLUMNS.len() }, _>(|i| {
        rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0)
    });
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<_> = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn cell(record: &Record, (title, fields): (&str, &[&str])) -> String {
    let mut parts: Vec<_> = fields
        .iter()
        .map(|name| record.text(name))
        .filter(|part| part != "-")
        .collect();
    // Where the call is known, the dialled address says nothing more.
    if title == "call" && parts.len() > 1 {
        parts.pop();
    }
    let text = if parts.is_empty() {
        "-".to_owned()
    } else {
        parts.join(" ")
    };
    // The sandbox's own cgroup is a long prefix without meaning to a reader.
    match text.split_once("/workloads/") {
        Some((_, rest)) if title == "cgroup" => rest.to_owned(),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_step_at_all_is_no_success() {
        assert!(!Report::default().ok());
    }

    #[test]
    fn one_step_that_went_otherwise_spoils_it() {
        let mut report = Report::default();
        report.step("a", "200", "200", true);
        assert!(report.ok());
        report.step("b", "403", "200", false);
        assert!(!report.ok());
        let document: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(document["steps"][1]["expected"], "403");
        assert_eq!(document["ok"], false);
    }
}
