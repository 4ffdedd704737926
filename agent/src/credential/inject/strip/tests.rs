//! Stripping takes what it names and nothing else.

use http::HeaderValue;
use proptest::prelude::*;

use super::*;

fn stripped(target: &str) -> String {
    let mut uri: Uri = target.parse().unwrap();
    query(&mut uri).unwrap();
    uri.to_string()
}

#[test]
fn the_lists_are_sorted_lower_case_and_have_no_doubles() {
    for list in [HEADERS, PARAMETERS] {
        assert!(list.is_sorted_by(|a, b| a < b));
        assert!(list.iter().all(|name| *name == name.to_ascii_lowercase()));
    }
    assert!(PARAMETERS.iter().all(|name| *name == spelling::parameter(name)));
    assert!(
        HEADERS
            .iter()
            .all(|name| HeaderName::from_lowercase(name.as_bytes()).is_ok() && !name.contains('_'))
    );
}

#[test]
fn known_headers_go_with_all_their_values() {
    let mut map = HeaderMap::new();
    for name in [
        "accept",
        "authorization",
        "x-api-key",
        "x_api_key",
        "x-cmc_pro_api_key",
        "x-request-id",
        "authorization",
        "cookie",
        "accept",
    ] {
        map.append(HeaderName::from_static(name), HeaderValue::from_static("x"));
    }
    headers(&mut map);
    let left: Vec<_> = map.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(left, ["accept", "accept", "x-request-id"]);
}

#[test]
fn known_parameters_go_in_every_spelling() {
    for (target, want) in [
        ("/a", "/a"),
        ("/a?b=c", "/a?b=c"),
        ("/a?key=1", "/a"),
        ("/a?KEY=1&b=2", "/a?b=2"),
        ("/a?b=2&k%65y=1", "/a?b=2"),
        ("/a?b=2&api%5Fkey=1&c", "/a?b=2&c"),
        ("/a?b;access_token=1;c=2", "/a?b;c=2"),
        ("/a?b=1&token", "/a?b=1"),
        ("/a?token[]=1&token[x]=2&b=1", "/a?b=1"),
        ("/a?+key=1&b=1", "/a?b=1"),
        ("/a?api-key=1&api.key=2&api[key=3&Access-Token=4&b=1", "/a?b=1"),
        ("/a?x.amz.signature=1&b=1", "/a?b=1"),
        (
            "/a?X-Amz-Algorithm=1&X-Amz-Signature=2&x-goog-signature=3&b=1",
            "/a?b=1",
        ),
        ("/a?AWSAccessKeyId=1&Signature=2&Expires=3", "/a?Expires=3"),
        (
            "/a?monkey=1&keys=2&page_token=3&tokens",
            "/a?monkey=1&keys=2&page_token=3&tokens",
        ),
        ("/a?&&b=1&", "/a?&&b=1&"),
        ("/a?", "/a?"),
        ("https://h:1/a?key=1&b=2", "https://h:1/a?b=2"),
    ] {
        assert_eq!(stripped(target), want, "{target}");
    }
}

fn parameter_text() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(PARAMETERS).prop_map(|key| format!("{key}=QQ")),
        "X-Amz-[A-Za-z]{1,8}=QQ",
        "f[a-z]{0,3}(=[a-zA-Z0-9%.]{0,6})?",
    ]
}

proptest! {
    #[test]
    fn all_other_parameters_stay_as_they_are_and_in_order(list in prop::collection::vec(parameter_text(), 0..12)) {
        let others: Vec<_> = list.iter().filter(|text| text.starts_with('f')).cloned().collect();
        let mut want = String::from("/p");
        if !others.is_empty() || list.is_empty() {
            want.push('?');
            want.push_str(&others.join("&"));
        }
        prop_assert_eq!(stripped(&format!("/p?{}", list.join("&"))), want);
    }

    #[test]
    fn all_other_headers_stay_as_they_are_and_in_order(
        list in prop::collection::vec((prop::sample::select(vec!["f1", "f2", "f3", "cookie", "x-api-key", "authorization"]), 0_u32..1000), 0..20)
    ) {
        let mut map = HeaderMap::new();
        for (name, value) in &list {
            map.append(HeaderName::from_static(name), HeaderValue::from(*value));
        }
        headers(&mut map);
        for name in ["f1", "f2", "f3"] {
            let want: Vec<_> = list.iter().filter(|(n, _)| *n == name).map(|(_, value)| value.to_string()).collect();
            let got: Vec<_> = map.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect();
            prop_assert_eq!(got, want);
        }
        let mut names: Vec<_> = list.iter().map(|(name, _)| *name).filter(|name| name.starts_with('f')).collect();
        let mut seen = std::collections::HashSet::new();
        names.retain(|name| seen.insert(*name));
        prop_assert_eq!(map.keys().map(HeaderName::as_str).collect::<Vec<_>>(), names);
    }

    #[test]
    fn no_target_makes_it_fail(path in "/[ -~&&[^#? \"<>`{}]]{0,20}", text in "[!-~&&[^#\"<>]]{0,60}") {
        let target = format!("{path}?{text}");
        if let Ok(mut uri) = target.parse::<Uri>() {
            query(&mut uri).unwrap();
            let again = uri.clone();
            query(&mut uri).unwrap();
            prop_assert_eq!(uri, again, "stripping twice is stripping once");
        }
    }
}
