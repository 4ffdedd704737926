//! Text to workloads and credentials, with a place for every error. What only shows when all files are
//! together (names used twice, credentials that do not exist) is `compile`'s.

mod credential;
mod rule;
mod workload;

use super::diagnostic::{Diagnostic, Source, Span};
use super::model::Workload;
use super::reader::{Fields, Report};
use crate::credential::spec::CredentialSpec;

/// The largest policy file, in bytes.
pub const MAX_FILE: usize = 4 * 1024 * 1024;

/// What one file holds.
#[derive(Debug, Default)]
pub(super) struct ParsedFile {
    pub(super) workloads: Vec<Workload>,
    pub(super) credentials: Vec<ParsedCredential>,
    pub(super) found: Vec<Diagnostic>,
}

/// A credential and where it is written. `spec` is `None` if its content was reported.
#[derive(Debug)]
pub(super) struct ParsedCredential {
    pub(super) name: super::CredentialName,
    pub(super) spec: Option<CredentialSpec>,
    pub(super) source: Source,
    pub(super) span: Span,
}

/// Reads one file; everything that is wrong with it is in `found`.
pub(super) fn parse(source: &Source) -> ParsedFile {
    let mut report = Report::new(source);
    let mut file = ParsedFile::default();
    if source.text.len() > MAX_FILE {
        let size = source.text.len();
        report.error_help(
            Span::default(),
            format!("the file has {size} bytes; a policy file may have {MAX_FILE}"),
            "split it: all *.toml files of the directory are read together",
        );
    } else if let Some(root) = report.parse()
        && let Some(mut fields) = Fields::of(&mut report, &root, "a policy file")
    {
        for value in fields.tables(&mut report, "workload") {
            file.workloads.extend(workload::parse(&mut report, value));
        }
        if let Some(value) = fields.value("credential") {
            file.credentials = credential::parse_all(&mut report, value);
        }
        fields.finish(&mut report);
    }
    file.found = report.found;
    file
}
