//! Tables of what each matcher takes.

use super::*;

fn host(text: &str) -> HostName {
    HostName::parse(text).unwrap()
}

#[test]
fn a_wildcard_is_one_label_for_an_allow_and_any_number_for_a_deny() {
    let pattern = HostPattern::parse("*.example.com").unwrap();
    for (name, narrow, wide) in [
        ("a.example.com", true, true),
        ("a.b.example.com", false, true),
        ("example.com", false, false),
        ("aexample.com", false, false),
        ("a.example.com.evil.net", false, false),
    ] {
        assert_eq!(pattern.matches(&host(name)), narrow, "{name}");
        assert_eq!(pattern.matches_wider(&host(name)), wide, "{name}");
    }
}

#[test]
fn globs_match_the_whole_text() {
    for (glob, text, expected) in [
        ("a", "a", true),
        ("a", "ab", false),
        ("a*", "ab", true),
        ("*b", "ab", true),
        ("a*c*e", "abcde", true),
        ("a*c*e", "abcdef", false),
        ("*", "", true),
        ("", "x", false),
        ("**a", "bba", true),
    ] {
        assert_eq!(Glob::new(glob).matches(text), expected, "{glob} {text}");
    }
    let text = "a".repeat(4000);
    assert!(!Glob::new(&format!("{}b", "a*".repeat(100))).matches(&text));
}

#[test]
fn every_value_counts_for_an_allow_and_any_for_a_deny() {
    let query = ValueMatcher::<Box<str>> {
        name: "mode".into(),
        values: vec![Glob::new("read"), Glob::new("r*d")],
    };
    for (text, narrow, wide) in [
        ("mode=read", true, true),
        ("x=1&mode=read", true, true),
        ("mode=%72ead", true, true),
        ("m%6fde=read", true, true),
        ("mode=read&mode=write", false, true),
        ("mode=write", false, false),
        ("Mode=READ", false, true),
        // Another spelling may be the one that the server reads.
        ("mode=read&mode[]=write", false, true),
        ("mode=read&Mode=read", false, true),
        ("mode=write&mo%64e[a]=read", false, true),
        ("mode[]=read", false, true),
        ("mode=read&modes=write&a[mode]=write", true, true),
        ("mode=write&[mode]=read", false, true),
        ("mode=read&mode[a=write", false, true),
        ("mode=read&mode]=write", false, true),
        ("mode=write&mode[=]=read", false, true),
        ("mode=write&mode%5B=%5d=read", false, true),
        ("mode=read]=x", false, false),
        ("mode=rd]=d", false, true),
        ("mode=r%5D=d", false, true),
        ("mode=+READ%00%E2%80%8B", false, true),
        ("x=1;mode=read", false, true),
        ("mode=%", false, true),
        ("mode", false, false),
        ("", false, false),
    ] {
        assert_eq!(query.matches(text), narrow, "{text}");
        assert_eq!(query.matches_wider(text), wide, "{text}");
    }
}

#[test]
fn headers_that_cannot_be_read_go_the_safe_way() {
    let matcher = ValueMatcher {
        name: HeaderName::from_static("x-op"),
        values: vec![Glob::new("Get")],
    };
    let with = |values: &[&[u8]]| {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("x-op", HeaderValue::from_bytes(value).unwrap());
        }
        (matcher.matches(&headers), matcher.matches_wider(&headers))
    };
    assert_eq!(with(&[b"Get"]), (true, true));
    assert_eq!(with(&[b"get"]), (false, true));
    assert_eq!(with(&[b"Get", b"Put"]), (false, true));
    assert_eq!(with(&[b"\xff"]), (false, true));
    assert_eq!(with(&[]), (false, false));
    // A list's members are values too (RFC 9110 section 5.6.1).
    assert_eq!(with(&[b"Get, Get"]), (true, true));
    assert_eq!(with(&[b"Put, get"]), (false, true));
    assert_eq!(with(&[b"Get,"]), (false, true));
    assert_eq!(with(&[b"Put; x, get; y=1"]), (false, true));
    assert_eq!(with(&[b"Put; Gets"]), (false, false));
    // Servers that make variables of header names read both as one, others read one of them only.
    for twin in ["x_op", "x.op"] {
        let mut headers = HeaderMap::new();
        headers.append(twin, HeaderValue::from_static("Get"));
        assert!(
            !matcher.matches(&headers) && matcher.matches_wider(&headers),
            "{twin}"
        );
        headers.append("x-op", HeaderValue::from_static("Get"));
        assert!(matcher.matches(&headers), "{twin}");
    }
    let mut twin = HeaderMap::new();
    twin.append("x_op", HeaderValue::from_static("get"));
    assert!(matcher.matches_wider(&twin));
    twin.append("x-op", HeaderValue::from_static("Get"));
    assert!(!matcher.matches(&twin));
}

#[test]
fn a_pattern_for_a_header_is_for_each_member_unless_it_has_commas() {
    for (glob, value, narrow, wide) in [
        ("read*", "reader", true, true),
        ("read*", "reader, admin", false, true),
        ("read*", "reader, readers", true, true),
        ("*", "a, b", true, true),
        ("*", "", true, true),
        ("Mon, *", "Mon, 1 Jan", true, true),
        ("text/a, text/b", "text/a, text/b", true, true),
        ("text/a", "text/a; q=1", false, true),
        ("admin", "user, Admin", false, true),
        ("admin", "administrator", false, false),
    ] {
        let matcher = ValueMatcher {
            name: HeaderName::from_static("x-op"),
            values: vec![Glob::new(glob)],
        };
        let mut headers = HeaderMap::new();
        headers.append("x-op", HeaderValue::from_static(value));
        assert_eq!(matcher.matches(&headers), narrow, "{glob} {value}");
        assert_eq!(matcher.matches_wider(&headers), wide, "{glob} {value}");
    }
}

#[test]
fn a_query_key_with_brackets_may_be_replaced_by_one_with_fewer() {
    let matcher = ValueMatcher {
        name: Box::from("filter[owner]"),
        values: vec![Glob::new("me")],
    };
    for (query, narrow, wide) in [
        ("filter[owner]=me", true, true),
        ("filter%5Bowner%5D=me&filter[state]=open&page[size]=1", true, true),
        ("filter[owner]=me&filter=x", false, true),
        ("filter[owner]=me&filter[]=x", false, true),
        ("filter[owner]=me&filter[owner][]=you", false, true),
        ("filter[owner][]=me", false, true),
        ("filter=me", false, false),
        ("[filter][owner]=me", false, true),
    ] {
        assert_eq!(matcher.matches(query), narrow, "{query}");
        assert_eq!(matcher.matches_wider(query), wide, "{query}");
    }
}
