//! What is wrong with a text that an operator wrote, and where: file, line, column, what to do about it.
//!
//! Shared by the policy and the agent's own settings. Values only; `cli` draws them.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// One file of text, as it was read.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Source {
    /// The file's path, as messages show it.
    pub name: Arc<str>,
    /// Its whole content.
    pub text: Arc<str>,
}

impl Source {
    /// Puts a name and a text together.
    #[must_use]
    pub fn new(name: &str, text: &str) -> Self {
        Self {
            name: name.into(),
            text: text.into(),
        }
    }
}

/// A place in a text: byte offsets, end excluded.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Span {
    /// The first byte.
    pub start: usize,
    /// The byte after the last.
    pub end: usize,
}

impl Span {
    /// The span as a range.
    #[must_use]
    pub fn range(self) -> Range<usize> {
        self.start..self.end
    }
}

impl From<toml_span::Span> for Span {
    fn from(span: toml_span::Span) -> Self {
        Self {
            start: span.start,
            end: span.end,
        }
    }
}

/// How bad it is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The text is refused as a whole.
    Error,
    /// The text is taken; somebody should look.
    Warning,
}

/// A second place that the message speaks of.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Related {
    /// The file's name.
    pub file: Arc<str>,
    /// The place in it.
    pub span: Span,
    /// What is there.
    pub label: String,
}

/// One finding. Sorted by file, then place.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Diagnostic {
    /// The file's name.
    pub file: Arc<str>,
    /// The place in it; empty at 0 where the file as a whole is meant.
    pub span: Span,
    /// Line of the place, from 1.
    pub line: usize,
    /// Column of the place in characters, from 1.
    pub column: usize,
    /// Error or warning.
    pub severity: Severity,
    /// What is wrong, in one line.
    pub message: String,
    /// A few words to put at the place itself.
    pub label: Option<String>,
    /// What to do about it.
    pub help: Option<String>,
    /// Other places that belong to it.
    pub related: Vec<Related>,
}

impl Diagnostic {
    /// An error at one place of a file.
    #[must_use]
    pub fn error(source: &Source, span: Span, message: impl Into<String>) -> Self {
        Self::new(Severity::Error, source, span, message.into())
    }

    /// A warning at one place of a file.
    #[must_use]
    pub fn warning(source: &Source, span: Span, message: impl Into<String>) -> Self {
        Self::new(Severity::Warning, source, span, message.into())
    }

    /// An error about a file as a whole, one that can't be read for instance.
    #[must_use]
    pub fn whole_file(file: &str, message: impl Into<String>) -> Self {
        Self::new(
            Severity::Error,
            &Source::new(file, ""),
            Span::default(),
            message.into(),
        )
    }

    fn new(severity: Severity, source: &Source, span: Span, message: String) -> Self {
        let (line, column) = line_and_column(&source.text, span.start);
        Self {
            file: Arc::clone(&source.name),
            span,
            line,
            column,
            severity,
            message,
            label: None,
            help: None,
            related: Vec::new(),
        }
    }

    /// Adds the words at the place.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Adds what to do.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Adds another place.
    #[must_use]
    pub fn related(mut self, source: &Source, span: Span, label: impl Into<String>) -> Self {
        self.related.push(Related {
            file: Arc::clone(&source.name),
            span,
            label: label.into(),
        });
        self
    }
}

/// One line, as compilers print it: `file:line:column: error: message (help)`.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(
            f,
            "{}:{}:{}: {severity}: {}",
            self.file, self.line, self.column, self.message
        )?;
        match &self.help {
            Some(help) => write!(f, " ({help})"),
            None => Ok(()),
        }
    }
}

/// Line and column from 1, of the character that holds byte `offset`; the end for offsets past it.
fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset.min(text.len())).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let line = before.matches('\n').count() + 1;
    let column = before.get(line_start..).unwrap_or("").chars().count() + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters_not_bytes() {
        assert_eq!(line_and_column("a\näöx", 6), (2, 3));
        assert_eq!(line_and_column("", 0), (1, 1));
        assert_eq!(line_and_column("ab", 99), (1, 3));
    }
}
