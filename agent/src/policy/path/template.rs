//! Path templates: whole segments, `{id}` for one, `{rest..}` for the tail.

use std::fmt;

use super::{NormalPath, PathError, folded_segment};

/// A path template over whole segments. `{id}` stands for one segment that is not empty, `{rest..}` for one
/// or more (so neither covers the bare parent with or without its trailing slash).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Template {
    text: String,
    segments: Vec<Segment>,
}

/// One segment of a template.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Segment {
    /// Exactly this text; empty for a trailing slash.
    Literal(Box<str>),
    /// One segment that is not empty.
    One,
    /// One segment or more, of which the first is not empty; always the last.
    Rest,
}

/// Why a text is no template.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TemplateError {
    /// Its literal part has no normal form.
    #[error("{0}, so no call can match it")]
    Path(#[from] PathError),
    /// The path has another normal form, which is the one that calls are matched in.
    #[error("the path is not in its normal form, which is {normal:?}")]
    NotNormal {
        /// What to write.
        normal: String,
    },
    /// Braces that are not a whole segment or hold no name.
    #[error("a placeholder is a whole segment, {{name}} or at the end {{name..}}")]
    Placeholder,
    /// `{rest..}` before the end.
    #[error("{{name..}} stands for the rest of the path, so it must be the last segment")]
    RestNotLast,
    /// A glob star.
    #[error("'*' has no meaning in a path: write {{name}} for one segment, {{name..}} for the rest")]
    Star,
}

impl Template {
    /// Reads a template as a rule has it.
    ///
    /// # Errors
    /// Says what is wrong with it, and the normal form if that is what differs.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let rest = text.strip_prefix('/').ok_or(PathError::NotAbsolute)?;
        let segments = rest
            .split('/')
            .map(parse_segment)
            .collect::<Result<Vec<_>, _>>()?;
        let inner = segments.split_last().map_or(&[][..], |(_, inner)| inner);
        if inner.contains(&Segment::Rest) {
            return Err(TemplateError::RestNotLast);
        }
        check_normal(rest, text)?;
        Ok(Self {
            text: text.to_owned(),
            segments,
        })
    }

    /// The template as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub(crate) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Whether an allow with this template covers the path; letter for letter.
    #[must_use]
    pub fn matches(&self, path: &NormalPath) -> bool {
        let path: Vec<&str> = path.segments().collect();
        matches_segments(&self.segments, &path)
    }

    /// Whether a deny with this template covers the path: also with a trailing slash, `;parameters`,
    /// other letter case or other encoding.
    #[must_use]
    pub fn matches_wider(&self, path: &NormalPath) -> bool {
        let mut path: Vec<_> = path.segments().map(folded_segment).collect();
        if path.last().is_some_and(|last| last.is_empty()) {
            path.pop();
        }
        let path: Vec<&str> = path.iter().map(AsRef::as_ref).collect();
        matches_segments(&self.folded_segments(), &path)
    }

    /// The segments as a deny compares them.
    pub(crate) fn folded_segments(&self) -> Vec<Segment> {
        let mut segments: Vec<Segment> = self
            .segments
            .iter()
            .map(|segment| match segment {
                Segment::Literal(text) => Segment::Literal(folded_segment(text).into()),
                Segment::One => Segment::One,
                Segment::Rest => Segment::Rest,
            })
            .collect();
        if segments.last() == Some(&Segment::Literal("".into())) {
            segments.pop();
        }
        segments
    }
}

/// How specific a template is, less is more: segment by segment from the left, a literal before `{id}` before
/// `{rest..}`. Two templates that match one path tie exactly when these are equal.
pub(crate) fn rank_of(segments: &[Segment]) -> Vec<u8> {
    let kind = |segment: &Segment| match segment {
        Segment::Literal(_) => 0,
        Segment::One => 1,
        Segment::Rest => 2,
    };
    segments.iter().map(kind).collect()
}

fn parse_segment(text: &str) -> Result<Segment, TemplateError> {
    if let Some(name) = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
        let (name, segment) = match name.strip_suffix("..") {
            Some(name) => (name, Segment::Rest),
            None => (name, Segment::One),
        };
        let is_name = !name.is_empty()
            && name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        return if is_name {
            Ok(segment)
        } else {
            Err(TemplateError::Placeholder)
        };
    }
    if text.contains(['{', '}']) {
        return Err(TemplateError::Placeholder);
    }
    if text == "*" || text == "**" {
        return Err(TemplateError::Star);
    }
    Ok(Segment::Literal(text.into()))
}

/// Placeholders stand as the letter x, so that the rules for paths apply to the rest.
fn check_normal(rest: &str, text: &str) -> Result<(), TemplateError> {
    let sample = |segment: &str| {
        if segment.starts_with('{') {
            "x".to_owned()
        } else {
            segment.to_owned()
        }
    };
    let path = format!("/{}", rest.split('/').map(sample).collect::<Vec<_>>().join("/"));
    let normal = NormalPath::parse(&path)?;
    if normal.as_str() == path {
        return Ok(());
    }
    let with_names: Vec<&str> = normal
        .segments()
        .zip(text.split('/').skip(1))
        .map(|(normal, written)| if written.starts_with('{') { written } else { normal })
        .collect();
    Err(TemplateError::NotNormal {
        normal: format!("/{}", with_names.join("/")),
    })
}

fn matches_segments(template: &[Segment], path: &[&str]) -> bool {
    match (template.split_first(), path.split_first()) {
        (None, None) => true,
        (Some((Segment::Rest, _)), Some((first, _))) => !first.is_empty(),
        (Some((Segment::One, template)), Some((first, path))) => {
            !first.is_empty() && matches_segments(template, path)
        }
        (Some((Segment::Literal(text), template)), Some((first, path))) => {
            text.as_ref() == *first && matches_segments(template, path)
        }
        (None, Some(_)) | (Some(_), None) => false,
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
