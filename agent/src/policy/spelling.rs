//! How servers read the names of headers and query parameters: spellings that may mean the same. Pure.
//!
//! Policy and credentials go by names, servers by what they make of them. Where one server takes for the same what
//! another tells apart, a deny and whatever is taken off go by the wide reading here, and an allow takes none but its own.

use percent_encoding::percent_decode_str;

/// Whether a server may take both names for one header: CGI and WSGI make variables of them, in which `-` is `_`
/// (RFC 3875 section 4.1.18). Both in lower case, as `http` keeps them.
#[must_use]
pub fn is_one_header(one: &str, other: &str) -> bool {
    let fold = |byte: u8| if byte == b'_' { b'-' } else { byte };
    one.len() == other.len() && one.bytes().map(fold).eq(other.bytes().map(fold))
}

/// The form in which names of parameters are compared: without blanks around it or what follows a NUL, in lower case,
/// and with `_` for `-`, for blanks and for dots, as PHP has it for the last two.
#[must_use]
pub fn parameter(name: &str) -> String {
    let name = name.split('\0').next().unwrap_or_default();
    name.trim().replace(['-', ' ', '.'], "_").to_ascii_lowercase()
}

/// What a server may take a parameter's raw key for, each as [`parameter`] has it.
///
/// `key[]` and `key[a]` are `key` for PHP and Rack; a bracket that nothing closes is `_` for PHP.
pub fn readings(raw: &str) -> impl Iterator<Item = String> {
    let spaced = raw.replace('+', " ");
    let whole = parameter(&percent_decode_str(&spaced).decode_utf8_lossy());
    let bracketed = whole.split_once('[').map(|(front, rest)| {
        if rest.contains(']') {
            parameter(front)
        } else {
            whole.replace('[', "_")
        }
    });
    std::iter::once(whole).chain(bracketed)
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
        ] {
            assert!(readings(raw).any(|reading| reading == "api_key"), "{raw}");
        }
        for raw in [
            "",
            "apikey",
            "api_keys",
            "xapi_key",
            "a[api_key]",
            "api[key]",
            "_api_key",
        ] {
            assert!(readings(raw).all(|reading| reading != "api_key"), "{raw}");
        }
        assert!(readings("page[size]").any(|reading| reading == parameter("Page[size]")));
    }

    #[test]
    fn a_header_is_one_with_its_twins() {
        assert!(is_one_header("x-api-key", "x_api-key"));
        assert!(is_one_header("x_api_key", "x-api-key"));
        assert!(!is_one_header("x-api-key", "x-api-keys"));
        assert!(!is_one_header("x-api-key", "xapikey"));
    }
}
