//! Paths: one normal form, templates over whole segments.
//!
//! What is matched is what is sent: the proxy sends [`NormalPath::as_str`] and nothing else. A path that
//! two servers could read differently has no normal form and is refused ([`PathError`]).

mod template;

pub(crate) use template::{Segment, rank_of};
pub use template::{Template, TemplateError};

use std::borrow::Cow;
use std::fmt;

/// A request path in its one normal form: starts with `/`, no empty inner segment, no dot segment, no
/// backslash, percent-encodings in upper case and never of an unreserved character (RFC 3986 section 2.3).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NormalPath(String);

/// Why a path has no normal form.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PathError {
    /// Anything but origin form (`*`, absolute form, empty).
    #[error("the path does not start with '/'")]
    NotAbsolute,
    /// Spaces, controls, non-ASCII bytes, `?` or `#`.
    #[error("the path has a byte that no path has: a space, a control, '?', '#' or non-ASCII")]
    ForbiddenByte,
    /// `%` without two hex digits.
    #[error("the path has a '%' without two hexadecimal digits")]
    MalformedPercent,
    /// `//`, which servers merge or keep.
    #[error("the path has an empty segment ('//')")]
    EmptySegment,
    /// `.` or `..`, also encoded, once or more often, or followed by `;parameters`.
    #[error("the path has a '.' or '..' segment")]
    DotSegment,
    /// `\`, which servers read as `/` or keep.
    #[error("the path has a backslash")]
    Backslash,
    /// An encoded `/`, `\` or control, once or more often encoded.
    #[error("the path has an encoded slash, backslash or control")]
    EncodedSeparator,
    /// A character in more bytes than UTF-8 has for it, which lenient decoders take for the character (`%C0%AE` for `.`).
    #[error("the path has a character in an overlong encoding")]
    Overlong,
    /// A segment that is nothing but `;parameters`.
    #[error("the path has a segment of ';parameters' alone")]
    BareParameters,
}

impl NormalPath {
    /// Brings the path of a request (without `?query`) into normal form.
    ///
    /// # Errors
    /// If two servers could read it differently.
    pub fn parse(raw: &str) -> Result<Self, PathError> {
        let Some(rest) = raw.strip_prefix('/') else {
            return Err(PathError::NotAbsolute);
        };
        let mut out = String::with_capacity(raw.len());
        out.push('/');
        normalise_bytes(rest.as_bytes(), &mut out)?;
        check_segments(&out)?;
        Ok(Self(out))
    }

    /// The path as it is matched and sent.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The segments after the leading `/`; a trailing slash shows as a last empty one.
    pub fn segments(&self) -> std::str::Split<'_, char> {
        self.0.get(1..).unwrap_or("").split('/')
    }
}

impl fmt::Display for NormalPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn normalise_bytes(bytes: &[u8], out: &mut String) -> Result<(), PathError> {
    let mut rest = bytes;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        match byte {
            b'%' => rest = normalise_escape(tail, out)?,
            b'\\' => return Err(PathError::Backslash),
            b'?' | b'#' | 0..=b' ' | 0x7f.. => return Err(PathError::ForbiddenByte),
            _ => out.push(char::from(byte)),
        }
    }
    Ok(())
}

/// Takes the two digits after a `%`; what follows them is the rest.
fn normalise_escape<'a>(tail: &'a [u8], out: &mut String) -> Result<&'a [u8], PathError> {
    let (byte, rest) = decode_pair(tail).ok_or(PathError::MalformedPercent)?;
    if is_separator(byte) {
        return Err(PathError::EncodedSeparator);
    }
    if is_unreserved(byte) {
        out.push(char::from(byte));
    } else {
        const HEX: &[u8; 16] = b"0123456789ABCDEF";
        out.push('%');
        for nibble in [byte >> 4, byte & 15] {
            out.push(char::from(HEX[usize::from(nibble)]));
        }
    }
    Ok(rest)
}

fn is_separator(byte: u8) -> bool {
    matches!(byte, b'/' | b'\\' | 0x7f) || byte.is_ascii_control()
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn decode_pair(bytes: &[u8]) -> Option<(u8, &[u8])> {
    let (&[high, low], rest) = bytes.split_first_chunk::<2>()?;
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    Some((digit(high)? << 4 | digit(low)?, rest))
}

fn check_segments(path: &str) -> Result<(), PathError> {
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        if segment.is_empty() && segments.peek().is_some() {
            return Err(PathError::EmptySegment);
        }
        check_segment(segment)?;
    }
    Ok(())
}

/// As the last of several servers reads it, each of which decodes once: `%252f` is a slash to the second.
fn check_segment(segment: &str) -> Result<(), PathError> {
    let decoded = decoded_wholly(segment);
    if decoded.iter().copied().any(is_separator) {
        return Err(PathError::EncodedSeparator);
    }
    if decoded.array_windows().any(|pair| is_overlong(*pair)) {
        return Err(PathError::Overlong);
    }
    // `/a/..;x/b` is `/b` to servers that drop parameters before they resolve dots.
    match before_parameters(&decoded) {
        b"." | b".." => Err(PathError::DotSegment),
        b"" if !segment.is_empty() => Err(PathError::BareParameters),
        _ => Ok(()),
    }
}

/// Whether no well-formed text has these two bytes in a row, but a decoder that does not ask would make one of them and what
/// follows (Unicode, table 3-7; of five and six bytes, RFC 2279).
fn is_overlong(pair: [u8; 2]) -> bool {
    matches!(
        pair,
        [0xc0 | 0xc1, 0x80..=0xbf]
            | [0xe0, 0x80..=0x9f]
            | [0xf0, 0x80..=0x8f]
            | [0xf8, 0x80..=0x87]
            | [0xfc, 0x80..=0x83]
    )
}

/// A decoded segment up to its first `;`.
fn before_parameters(decoded: &[u8]) -> &[u8] {
    decoded.split(|byte| *byte == b';').next().unwrap_or(decoded)
}

/// The form in which a deny compares a segment: decoded as often as it can be, without `;parameters`, in lower case. It equals
/// itself for the usual segment, so this allocates only for unusual ones.
#[must_use]
pub(crate) fn folded_segment(segment: &str) -> Cow<'_, str> {
    let is_folded = |b: u8| !matches!(b, b'%' | b';') && b.is_ascii() && !b.is_ascii_uppercase();
    if segment.bytes().all(is_folded) {
        return Cow::Borrowed(segment);
    }
    let decoded = decoded_wholly(segment);
    Cow::Owned(String::from_utf8_lossy(before_parameters(&decoded)).to_lowercase())
}

/// Servers behind others decode again what those decoded: `%2561` is an `a` to the second. In one pass, since each round
/// may take off no more than two bytes of a long path, and none depends on the others' order: escapes don't overlap.
fn decoded_wholly(segment: &str) -> Cow<'_, [u8]> {
    if !segment.contains('%') {
        return Cow::Borrowed(segment.as_bytes());
    }
    let mut decoded = Vec::with_capacity(segment.len());
    for byte in segment.bytes() {
        decoded.push(byte);
        while let Some((before, [b'%', digits @ ..])) = decoded.split_last_chunk::<3>()
            && let Some((byte, _)) = decode_pair(digits)
        {
            decoded.truncate(before.len());
            decoded.push(byte);
        }
    }
    Cow::Owned(decoded)
}

#[cfg(test)]
mod tests;
