//! Taking parameters out of a query. Pure.

use crate::policy::spelling;

/// Parameters that make a framework take another method than the request's (Google's APIs, Rack, Symfony, Laravel, Slim,
/// OData and others): what policy matches would not be what is done. As [`spelling::parameter`] has them.
const OVERRIDES: [&str; 7] = [
    "$httpmethod",
    "_method",
    "_httpmethod",
    "_http_method",
    "x_http_method",
    "x_http_method_override",
    "x_method_override",
];

/// The query without parameters that override the method; `None` if it has none.
#[must_use]
pub fn without_overrides(query: &str) -> Option<String> {
    without(query, |raw| {
        spelling::is_any(raw, |key| {
            key.starts_with(['$', '_', 'x']) && OVERRIDES.contains(&key)
        })
    })
}

/// The query without the parameters whose raw key `is_one`; `None` if it has none.
///
/// Servers differ on whether `;` separates as `&` does (WHATWG URL against HTML 4.01 appendix B.2.2): here both do.
/// The others' bytes stay as they are.
#[must_use]
pub fn without(query: &str, is_one: impl Fn(&str) -> bool) -> Option<String> {
    let goes = |piece: &str| {
        let pair = piece.trim_end_matches(['&', ';']);
        is_one(pair.split('=').next().unwrap_or_default())
    };
    if !query.split_inclusive(['&', ';']).any(goes) {
        return None;
    }
    let kept: String = query
        .split_inclusive(['&', ';'])
        .filter(|piece| !goes(piece))
        .collect();
    // A piece carries the separator after it: one left at the end belonged to a piece that is gone.
    Some(if query.ends_with(['&', ';']) {
        kept
    } else {
        kept.trim_end_matches(['&', ';']).to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_that_override_the_method_go_in_every_spelling() {
        for query in [
            "_method=DELETE",
            "%5fMethod=DELETE",
            "_method[]=DELETE",
            "X-HTTP-Method-Override=PUT",
            "x_http_method=PUT",
            "_HttpMethod=PUT",
            ".method=PUT",
            "x.http-method+=PUT",
            "$httpMethod=DELETE",
            "%24httpmethod=DELETE",
            "[_method]=DELETE",
        ] {
            assert_eq!(without_overrides(query).as_deref(), Some(""), "{query}");
            let among = format!("a=1&{query}&b=2");
            assert_eq!(without_overrides(&among).as_deref(), Some("a=1&b=2"), "{query}");
        }
        for query in [
            "",
            "method=DELETE",
            "a=_method",
            "payment_method=card",
            "$filter=a",
        ] {
            assert_eq!(without_overrides(query), None, "{query}");
        }
    }
}
