//! A secret's bytes: never shown, zeroised, exposed in one place.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// The longest value that is taken, in bytes: what common servers accept as one header line.
pub const MAX_LEN: usize = 8 * 1024;

/// A credential's value: 1 to [`MAX_LEN`] bytes of visible ASCII, spaces only inside.
///
/// It can't be cloned, compared by `==`, formatted or serialised, and its memory is wiped when it is dropped.
/// `expose` is for `credential::inject` alone, [`Secret::for_channel`] for `channel` alone.
pub struct Secret(Zeroizing<String>);

/// Why a value can't be a secret. Says nothing about the value itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SecretError {
    /// Nothing there: an empty token would be sent as one.
    #[error("the value is empty")]
    Empty,
    /// Longer than [`MAX_LEN`].
    #[error("the value is longer than {MAX_LEN} bytes")]
    TooLong,
    /// CR or LF: would split the header.
    #[error("the value has a line break inside (a file may end in one newline, no more)")]
    LineBreak,
    /// NUL.
    #[error("the value has a NUL byte")]
    Nul,
    /// Another control character, tab included.
    #[error("the value has a control character")]
    Control,
    /// Beyond ASCII: a header can't carry it in one agreed way.
    #[error("the value has a character outside ASCII")]
    NonAscii,
    /// A space at either end: servers trim it, so it is a slip of the editor.
    #[error("the value begins or ends with a space")]
    OuterSpace,
}

impl Secret {
    /// Takes a value exactly as it is; the bytes are wiped whether or not they are taken.
    ///
    /// # Errors
    /// Names the first rule of the type's definition that the value breaks.
    pub fn new(bytes: Vec<u8>) -> Result<Self, SecretError> {
        let bytes = Zeroizing::new(bytes);
        check(&bytes)?;
        let text = std::str::from_utf8(&bytes).map_err(|_not_ascii| SecretError::NonAscii)?;
        Ok(Self(Zeroizing::new(text.to_owned())))
    }

    /// Takes a value as a file or a helper's output has it: exactly one trailing newline (LF or CRLF) is not
    /// part of it.
    ///
    /// # Errors
    /// As [`Secret::new`].
    pub fn from_line(mut bytes: Vec<u8>) -> Result<Self, SecretError> {
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
            if bytes.last() == Some(&b'\r') {
                bytes.pop();
            }
        }
        Self::new(bytes)
    }

    /// The value itself.
    pub(super) fn expose(&self) -> &str {
        &self.0
    }

    /// A copy that the channel to the worker can carry.
    #[must_use]
    pub fn for_channel(&self) -> WireSecret {
        WireSecret(self.0.clone())
    }

    /// Whether both hold the same value; how a source tells that a value has changed.
    #[must_use]
    pub fn same_as(&self, other: &Self) -> bool {
        self.0.as_bytes() == other.0.as_bytes()
    }
}

fn check(bytes: &[u8]) -> Result<(), SecretError> {
    if bytes.is_empty() {
        return Err(SecretError::Empty);
    }
    if bytes.len() > MAX_LEN {
        return Err(SecretError::TooLong);
    }
    for byte in bytes {
        match byte {
            0 => return Err(SecretError::Nul),
            b'\r' | b'\n' => return Err(SecretError::LineBreak),
            0x01..0x20 | 0x7f => return Err(SecretError::Control),
            0x80.. => return Err(SecretError::NonAscii),
            0x20..0x7f => {}
        }
    }
    if bytes.first() == Some(&b' ') || bytes.last() == Some(&b' ') {
        return Err(SecretError::OuterSpace);
    }
    Ok(())
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A secret on its way from the supervisor to the worker: the one form that serialises. The channel wipes the
/// buffers that it encodes into and decodes from.
pub struct WireSecret(Zeroizing<String>);

impl WireSecret {
    /// The secret again, checked again.
    ///
    /// # Errors
    /// As [`Secret::new`].
    pub fn into_secret(self) -> Result<Secret, SecretError> {
        check(self.0.as_bytes())?;
        Ok(Secret(self.0))
    }
}

impl fmt::Debug for WireSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WireSecret(..)")
    }
}

impl Serialize for WireSecret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for WireSecret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Zeroizing::new(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_no_header_can_carry_are_refused_without_being_shown() {
        let long = "x".repeat(MAX_LEN + 1);
        for (value, error) in [
            ("", SecretError::Empty),
            (long.as_str(), SecretError::TooLong),
            ("hunter2\r\nX-Evil: 1", SecretError::LineBreak),
            ("hunter2\n", SecretError::LineBreak),
            ("hunter2\r", SecretError::LineBreak),
            ("hunter2\0", SecretError::Nul),
            ("hunter2\tb", SecretError::Control),
            ("hunter2\x7f", SecretError::Control),
            ("hunter2ü", SecretError::NonAscii),
            (" hunter2", SecretError::OuterSpace),
            ("hunter2 ", SecretError::OuterSpace),
        ] {
            let got = Secret::new(value.as_bytes().to_vec()).unwrap_err();
            assert_eq!(got, error, "{value:?}");
            assert!(!format!("{got} {got:?}").contains("hunter2"));
        }
        assert_eq!(Secret::new(vec![b'a', 0xff]).unwrap_err(), SecretError::NonAscii);
        assert!(Secret::new(vec![b'x'; MAX_LEN]).is_ok());
    }

    #[test]
    fn exactly_one_trailing_newline_is_no_part_of_a_line() {
        for (value, want) in [
            ("a b", Ok("a b")),
            ("a\n", Ok("a")),
            ("a\r\n", Ok("a")),
            ("a\n\n", Err(SecretError::LineBreak)),
            ("a\r", Err(SecretError::LineBreak)),
            ("\n", Err(SecretError::Empty)),
        ] {
            let got = Secret::from_line(value.as_bytes().to_vec());
            assert_eq!(
                got.as_ref().map(Secret::expose).map_err(|e| *e),
                want,
                "{value:?}"
            );
        }
    }

    #[test]
    fn nothing_that_formats_a_secret_shows_it() {
        let secret = Secret::new(b"hunter2".to_vec()).unwrap();
        let wire = secret.for_channel();
        assert_eq!(
            format!("{secret:?} {secret:#?} {wire:?}"),
            "Secret(..) Secret(..) WireSecret(..)"
        );
    }

    #[test]
    fn a_secret_survives_the_channel_and_is_checked_on_arrival() {
        let secret = Secret::new(b"hunter2".to_vec()).unwrap();
        let bytes = postcard::to_stdvec(&secret.for_channel()).unwrap();
        let back: WireSecret = postcard::from_bytes(&bytes).unwrap();
        assert!(back.into_secret().unwrap().same_as(&secret));
        let bad: WireSecret = postcard::from_bytes(&postcard::to_stdvec("a\nb").unwrap()).unwrap();
        assert_eq!(bad.into_secret().unwrap_err(), SecretError::LineBreak);
    }
}
