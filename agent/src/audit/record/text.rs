//! What clients choose, made safe to keep: clipped, redacted, and in printable ASCII on disk.

use std::fmt::Write as _;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use serde_json::ser::Formatter;

/// Writes JSON in printable ASCII: controls beyond those that JSON itself escapes (DEL, C1), directional
/// overrides and all else outside ASCII become `\uXXXX`.
pub(super) struct Ascii;

impl Formatter for Ascii {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        // serde_json has taken the controls below 0x20 out.
        if fragment.is_ascii() && !fragment.as_bytes().contains(&0x7f) {
            return writer.write_all(fragment.as_bytes());
        }
        let mut units = [0; 2];
        for character in fragment.chars() {
            if matches!(character, ' '..='~') {
                writer.write_all(&[character as u8])?;
            } else {
                for unit in character.encode_utf16(&mut units) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}

/// At most `max` bytes of `text`, cut between characters.
#[must_use]
pub fn clip(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

/// The query with each value replaced by `*`; keys, their order and separators stay. A parameter without `=`
/// is a key only if it looks like one (at most 32 letters, digits, `-`, `_` and `.`), else it is replaced too.
#[must_use]
pub fn redact_query(query: &str) -> String {
    let mut out = String::with_capacity(query.len().min(super::MAX_PATH));
    for (at, parameter) in query.split('&').enumerate() {
        if at > 0 {
            out.push('&');
        }
        match parameter.split_once('=') {
            Some((key, _)) if looks_like_key(key) => {
                out.push_str(key);
                out.push_str("=*");
            }
            None if parameter.is_empty() => {}
            None if parameter.len() <= 32 && looks_like_key(parameter) => out.push_str(parameter),
            Some(_) | None => out.push('*'),
        }
    }
    out
}

fn looks_like_key(text: &str) -> bool {
    // Brackets, colons and escapes are common in keys; a separator of another kind would hide a value in one.
    text.len() <= 128
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.~[]%:$@+".contains(&byte))
}

/// A path as text; each byte that is no UTF-8 becomes `\xNN`.
pub(super) fn path(path: &Path) -> String {
    let bytes = path.as_os_str().as_bytes();
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        for byte in chunk.invalid() {
            // Writing to a String can't fail.
            write!(out, "\\x{byte:02x}").unwrap_or_default();
        }
    }
    out
}
