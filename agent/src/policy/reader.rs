//! Reads TOML values by key and type and collects every fault with its place, instead of stopping at one.
//!
//! Each `Fields` method returns `None` for a key that is absent and for one whose value was reported.

use std::str::FromStr;

use toml_span::value::{Table, Value, ValueInner};

use super::diagnostic::{Diagnostic, Source, Span};

/// A value and where it is written.
#[derive(Clone, Copy, Debug)]
pub struct Spanned<T> {
    /// The value.
    pub value: T,
    /// Its place.
    pub span: Span,
}

/// The findings on one file.
#[derive(Debug)]
pub struct Report<'s> {
    /// The file.
    pub source: &'s Source,
    /// What was found in it so far.
    pub found: Vec<Diagnostic>,
}

impl<'s> Report<'s> {
    /// Starts with nothing found.
    #[must_use]
    pub fn new(source: &'s Source) -> Self {
        Self {
            source,
            found: Vec::new(),
        }
    }

    /// Parses the file; a syntax error is reported.
    pub fn parse(&mut self) -> Option<Value<'s>> {
        match toml_span::parse(&self.source.text) {
            Ok(value) => Some(value),
            Err(error) => {
                self.found.push(syntax_error(self.source, &error));
                None
            }
        }
    }

    /// Notes an error without more to say.
    pub fn error(&mut self, span: Span, message: impl Into<String>) {
        self.found.push(Diagnostic::error(self.source, span, message));
    }

    /// Notes an error and what to do about it.
    pub fn error_help(&mut self, span: Span, message: impl Into<String>, help: impl Into<String>) {
        self.found
            .push(Diagnostic::error(self.source, span, message).help(help));
    }

    fn wrong_type(&mut self, key: &str, value: &Value<'_>, expected: &str) {
        let found = type_name(value);
        let message = format!("`{key}` must be {expected}, not {found}");
        let label = format!("this is {found}");
        self.found
            .push(Diagnostic::error(self.source, value.span.into(), message).label(label));
    }
}

fn syntax_error(source: &Source, error: &toml_span::Error) -> Diagnostic {
    use toml_span::ErrorKind;
    // The parser's place for an unexpected end is one past it.
    let end = source.text.len();
    let span = Span {
        start: error.span.start.min(end),
        end: error.span.end.min(end),
    };
    let finding = |message: String| Diagnostic::error(source, span, message);
    let first_here = "first written here";
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the parser's own wording fits the other kinds"
    )]
    match &error.kind {
        ErrorKind::DuplicateKey { key, first } => {
            finding(format!("`{key}` is given twice")).related(source, (*first).into(), first_here)
        }
        ErrorKind::DuplicateTable { name, first } => finding(format!("the table `{name}` is defined twice"))
            .related(source, (*first).into(), first_here),
        ErrorKind::UnquotedString => finding("not valid TOML: this value has no quotes".to_owned())
            .help("put texts in \"double quotes\""),
        _ => finding(format!("not valid TOML: {error}")),
    }
}

fn type_name(value: &Value<'_>) -> &'static str {
    match value.as_ref() {
        ValueInner::String(_) => "a string",
        ValueInner::Integer(_) => "an integer",
        ValueInner::Float(_) => "a float",
        ValueInner::Boolean(_) => "a boolean",
        ValueInner::Array(_) => "a list",
        ValueInner::Table(_) => "a table",
    }
}

/// The keys of one table, asked for one by one; what nobody asked for is unknown.
#[derive(Debug)]
pub struct Fields<'v, 's> {
    table: &'v Table<'v>,
    /// The table's place: its header, or its braces.
    pub span: Span,
    what: &'static str,
    asked: Vec<&'static str>,
    marker: std::marker::PhantomData<&'s ()>,
}

impl<'v> Fields<'v, '_> {
    /// Takes a value as a table; `what` is how messages call it.
    pub fn of(report: &mut Report<'_>, value: &'v Value<'v>, what: &'static str) -> Option<Self> {
        let Some(table) = value.as_table() else {
            report.wrong_type(what, value, "a table");
            return None;
        };
        let span = header_of(&report.source.text, value.span.into());
        Some(Self {
            table,
            span,
            what,
            asked: Vec::new(),
            marker: std::marker::PhantomData,
        })
    }

    /// The raw value of a key.
    pub fn value(&mut self, key: &'static str) -> Option<&'v Value<'v>> {
        self.asked.push(key);
        self.table.get(key)
    }

    /// All keys and values, for tables whose keys are names.
    pub fn entries(&self) -> impl Iterator<Item = (Spanned<&'v str>, &'v Value<'v>)> + use<'v> {
        self.table.iter().map(|(key, value)| {
            (
                Spanned {
                    value: &*key.name,
                    span: key.span.into(),
                },
                value,
            )
        })
    }

    /// The place of a key's value, or of the table if it has none.
    #[must_use]
    pub fn span_of(&self, key: &str) -> Span {
        self.table.get(key).map_or(self.span, |value| value.span.into())
    }

    /// A string.
    pub fn string(&mut self, report: &mut Report<'_>, key: &'static str) -> Option<Spanned<&'v str>> {
        let value = self.value(key)?;
        text_of(report, key, value, "a string")
    }

    /// A string that must be there.
    pub fn required(&mut self, report: &mut Report<'_>, key: &'static str) -> Option<Spanned<&'v str>> {
        if !self.table.contains_key(key) {
            self.missing(report, key);
        }
        self.string(report, key)
    }

    /// Reports that a key must be there.
    pub fn missing(&self, report: &mut Report<'_>, key: &str) {
        report.error(self.span, format!("{} needs `{key}`", self.what));
    }

    /// A string that is read as a `T`.
    pub fn parsed<T: FromStr>(&mut self, report: &mut Report<'_>, key: &'static str) -> Option<Spanned<T>>
    where
        T::Err: std::fmt::Display,
    {
        let text = self.string(report, key)?;
        match text.value.parse() {
            Ok(value) => Some(Spanned {
                value,
                span: text.span,
            }),
            Err(error) => {
                report.error(text.span, format!("`{key}`: {error}"));
                None
            }
        }
    }

    /// One string or a list of them.
    pub fn strings(&mut self, report: &mut Report<'_>, key: &'static str) -> Vec<Spanned<&'v str>> {
        let expected = "a string or a list of strings";
        let values = self.one_or_more(report, key);
        values
            .into_iter()
            .filter_map(|value| text_of(report, key, value, expected))
            .collect()
    }

    /// One value or a list of them; an empty list is an error.
    pub fn one_or_more(&mut self, report: &mut Report<'_>, key: &'static str) -> Vec<&'v Value<'v>> {
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let Some(list) = value.as_array() else {
            return vec![value];
        };
        if list.is_empty() {
            let help = format!("leave `{key}` out if it is to ask nothing");
            report.error_help(value.span.into(), format!("`{key}` is an empty list"), help);
        }
        list.iter().collect()
    }

    /// A list of tables (`[[key]]`).
    pub fn tables(&mut self, report: &mut Report<'_>, key: &'static str) -> &'v [Value<'v>] {
        let Some(value) = self.value(key) else { return &[] };
        if let Some(list) = value.as_array() {
            return list;
        }
        report.wrong_type(key, value, &format!("a list of tables, written [[{key}]]"));
        &[]
    }

    /// `true` or `false`.
    pub fn boolean(&mut self, report: &mut Report<'_>, key: &'static str) -> Option<bool> {
        let value = self.value(key)?;
        if value.as_bool().is_none() {
            report.wrong_type(key, value, "true or false");
        }
        value.as_bool()
    }

    /// A whole number in a range.
    pub fn integer(&mut self, report: &mut Report<'_>, key: &'static str, min: u64, max: u64) -> Option<u64> {
        let value = self.value(key)?;
        integer_of(report, key, value, min, max)
    }

    /// TCP ports, one or a list.
    pub fn ports(&mut self, report: &mut Report<'_>, key: &'static str) -> Vec<Spanned<u16>> {
        let values = self.one_or_more(report, key);
        let port = |value: &Value<'_>| {
            let port = integer_of(report, key, value, 1, 65535)?;
            Some(Spanned {
                value: u16::try_from(port).ok()?,
                span: value.span.into(),
            })
        };
        values.into_iter().filter_map(port).collect()
    }

    /// Reports the keys that nobody asked for.
    pub fn finish(self, report: &mut Report<'_>) {
        self.finish_with(report, |_| None);
    }

    /// Like `finish`; `advice` may know better what to do about a key than a similar name.
    pub fn finish_with(self, report: &mut Report<'_>, advice: impl Fn(&str) -> Option<&'static str>) {
        for key in self.table.keys() {
            if self.asked.contains(&&*key.name) {
                continue;
            }
            let help = match (advice(&key.name), nearest(&key.name, self.asked.iter().copied())) {
                (Some(advice), _) => advice.to_owned(),
                (None, Some(near)) => format!("did you mean `{near}`?"),
                (None, None) => format!("the keys here are {}", self.asked.join(", ")),
            };
            report.error_help(
                key.span.into(),
                format!("unknown key `{}` in {}", key.name, self.what),
                help,
            );
        }
    }
}

/// A value as text.
pub fn text_of<'v>(
    report: &mut Report<'_>,
    key: &str,
    value: &'v Value<'v>,
    expected: &str,
) -> Option<Spanned<&'v str>> {
    let Some(text) = value.as_str() else {
        report.wrong_type(key, value, expected);
        return None;
    };
    Some(Spanned {
        value: text,
        span: value.span.into(),
    })
}

fn integer_of(report: &mut Report<'_>, key: &str, value: &Value<'_>, min: u64, max: u64) -> Option<u64> {
    let Some(number) = value.as_integer() else {
        report.wrong_type(key, value, "an integer");
        return None;
    };
    let number = u64::try_from(number)
        .ok()
        .filter(|number| (min..=max).contains(number));
    if number.is_none() {
        report.error(
            value.span.into(),
            format!("`{key}` must be between {min} and {max}"),
        );
    }
    number
}

/// The name that was probably meant.
#[must_use]
pub fn nearest<'n>(text: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let scored = names.map(|name| (strsim::jaro_winkler(text, name), name));
    let close = scored.filter(|(score, name)| *score > 0.85 || strsim::osa_distance(text, name) <= 1);
    close.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, name)| name)
}

/// A table that has a header is shown by its header line, not by its whole body.
fn header_of(text: &str, span: Span) -> Span {
    let Some(body) = text.get(span.range()) else {
        return span;
    };
    match body.find('\n') {
        Some(line) => Span {
            start: span.start,
            end: span.start + body.get(..line).unwrap_or(body).trim_end().len(),
        },
        None => span,
    }
}
