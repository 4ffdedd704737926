//! How servers read the names of headers and query parameters: spellings that may mean the same. Pure.
//!
//! Policy and credentials go by names, servers by what they make of them. Where one server takes for the same what
//! another tells apart, a deny and whatever is taken off go by the wide reading here, and an allow takes none but its own.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// Whether a server may take both names for one header: CGI and WSGI make variables of them, in which `-` is `_`
/// (RFC 3875 section 4.1.18), as is in some (lighttpd) all else that is no letter or digit. Both in lower case, as
/// `http` keeps them.
#[must_use]
pub fn is_one_header(one: &str, other: &str) -> bool {
    one.len() == other.len() && one.bytes().map(fold).eq(other.bytes().map(fold))
}

/// A header's name, in lower case, with `-` for all that [`is_one_header`] takes for it.
#[must_use]
pub fn header(name: &str) -> Cow<'_, str> {
    if name.bytes().all(|byte| fold(byte) == byte) {
        return Cow::Borrowed(name);
    }
    Cow::Owned(name.bytes().map(|byte| char::from(fold(byte))).collect())
}

fn fold(byte: u8) -> u8 {
    if byte.is_ascii_alphanumeric() { byte } else { b'-' }
}

/// The form in which names of parameters are compared: without blanks around it or what follows a NUL, in lower case,
/// and with `_` for `-`, for blanks and for dots, as PHP has it for the last two.
#[must_use]
pub fn parameter(name: &str) -> String {
    let name = name.split('\0').next().unwrap_or_default();
    let mut name = name.trim().replace(['-', ' ', '.'], "_");
    name.make_ascii_lowercase();
    name
}

/// Whether a server may take a parameter's raw key for this name or for a part of what it names; the name is as
/// [`parameter`] has it. `key[]` and `key[a]` are parts of `key` for PHP, Rack and Node's qs.
#[must_use]
pub fn may_be(raw: &str, name: &str) -> bool {
    let key = folded(raw);
    key == name || begins_with(&key, name) || unclosed(&key).is_some_and(|key| key == name)
}

/// Whether a server may have this key in the place of the name: of `filter[owner]=a&filter=b` PHP keeps the last.
#[must_use]
pub fn may_replace(raw: &str, name: &str) -> bool {
    begins_with(name, &folded(raw))
}

/// Whether one of the names that a server may take a parameter's raw key for, each as [`parameter`] has it, `is_one`. They
/// are without brackets: what is within them tells parts of one parameter from each other.
#[must_use]
pub fn is_any(raw: &str, is_one: impl Fn(&str) -> bool) -> bool {
    let key = folded(raw);
    parts(&key).next().is_some_and(&is_one) || unclosed(&key).is_some_and(|key| is_one(&key))
}

/// A raw key decoded and as [`parameter`] has names. The usual one is that already, and there may be many in a query.
fn folded(raw: &str) -> Cow<'_, str> {
    let is_folded = |b: u8| b.is_ascii_graphic() && !b.is_ascii_uppercase() && !b"%+-.".contains(&b);
    if raw.bytes().all(is_folded) {
        return Cow::Borrowed(raw);
    }
    let spaced = if raw.contains('+') {
        Cow::Owned(raw.replace('+', " "))
    } else {
        Cow::Borrowed(raw)
    };
    Cow::Owned(parameter(&percent_decode_str(&spaced).decode_utf8_lossy()))
}

/// What brackets part a name into. Where they are does not count: `[a]` and `a]` are `a` for Rack, the first for qs too.
fn parts(name: &str) -> impl Iterator<Item = &str> {
    name.split(['[', ']']).filter(|part| !part.is_empty())
}

fn begins_with(name: &str, start: &str) -> bool {
    let mut name = parts(name);
    let mut start = parts(start).peekable();
    start.peek().is_some() && start.all(|part| name.next() == Some(part))
}

/// A bracket that nothing closes is `_` for PHP.
fn unclosed(key: &str) -> Option<String> {
    let (_, rest) = key.split_once('[')?;
    (!rest.contains(']')).then(|| key.replace('[', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_has_many_spellings_and_no_other() {
        for raw in [
            "api_key",
            "API_Key",
            "api-key",
            "api.key",
            "api+key",
            "%61pi%5fkey",
            "api_key[]",
            "api.key[a][b]",
            "api_key%5B%5D",
            "+api_key+",
            "api[key",
            "api_key%00x",
            "[api_key]",
            "[]api_key",
            "%5Bapi-key%5D[a]",
            "api_key]",
            "api_key[a",
        ] {
            assert!(may_be(raw, "api_key"), "{raw}");
            assert!(is_any(raw, |name| name == "api_key"), "{raw}");
        }
        for raw in [
            "",
            "[]",
            "apikey",
            "api_keys",
            "xapi_key",
            "a[api_key]",
            "api[key]",
            "_api_key",
        ] {
            assert!(!may_be(raw, "api_key"), "{raw}");
            assert!(!is_any(raw, |name| name == "api_key"), "{raw}");
        }
    }

    #[test]
    fn a_name_with_brackets_is_compared_part_by_part() {
        for (raw, may, replaces) in [
            ("page[size]", true, true),
            ("Page%5Bsize%5D", true, true),
            ("page[size][]", true, true),
            ("page[size][a]", true, false),
            ("[page][size]", true, true),
            ("page[size", true, true),
            ("page", false, true),
            ("page[]", false, true),
            ("page[number]", false, false),
            ("size", false, false),
            ("", false, false),
            ("[]", false, false),
        ] {
            assert_eq!(may_be(raw, "page[size]"), may, "{raw}");
            assert_eq!(may_replace(raw, "page[size]"), replaces, "{raw}");
        }
        assert!(may_be("", "") && may_be("[]", "[]") && !may_be("a", "") && !may_be("a", "[]"));
    }

    #[test]
    fn a_header_is_one_with_its_twins() {
        for (one, other) in [
            ("x-api-key", "x_api-key"),
            ("x_api_key", "x-api-key"),
            ("x-api-key", "x.api~key"),
        ] {
            assert!(is_one_header(one, other), "{one} {other}");
            assert_eq!(header(other), "x-api-key");
        }
        assert!(!is_one_header("x-api-key", "x-api-keys"));
        assert!(!is_one_header("x-api-key", "xapikey"));
    }
}
