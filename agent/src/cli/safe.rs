//! What came from outside, as a terminal may show it.

use std::fmt;

/// A value that a client or a managed process chose: as it is only if it is plain, else quoted and escaped. It can't look
/// like another field, or reach the terminal.
pub(super) struct Safe<'a>(pub(super) &'a str);

impl fmt::Display for Safe<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.0.is_empty() && self.0.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"') {
            return f.write_str(self.0);
        }
        write!(f, "\"{}\"", self.0.escape_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_plain_is_shown_as_it_is() {
        assert_eq!(Safe("/v1/items?a=b").to_string(), "/v1/items?a=b");
        for (given, shown) in [
            ("", r#""""#),
            ("a b", r#""a b""#),
            ("\u{1b}[2J", r#""\u{1b}[2J""#),
            ("a\"b", r#""a\"b""#),
            ("caf\u{e9}", r#""caf\u{e9}""#),
        ] {
            assert_eq!(Safe(given).to_string(), shown);
        }
    }
}
