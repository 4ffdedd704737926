//! Tables and properties of the normal form and of templates.

use super::*;
use proptest::prelude::*;

fn path(text: &str) -> NormalPath {
    NormalPath::parse(text).unwrap()
}

#[test]
fn unreserved_characters_are_decoded_and_digits_put_in_upper_case() {
    for (raw, normal) in [
        ("/", "/"),
        ("/v1/charges", "/v1/charges"),
        ("/v1/charges/", "/v1/charges/"),
        ("/%76%31/%7euser", "/v1/~user"),
        ("/a%c3%a9%3d", "/a%C3%A9%3D"),
        ("/%e0%a0%80%f0%90%80%80", "/%E0%A0%80%F0%90%80%80"),
        ("/%c0-propos", "/%C0-propos"),
        ("/a%2eb", "/a.b"),
        ("/a;v=1", "/a;v=1"),
        ("/a:b@c!$&'()*+,=", "/a:b@c!$&'()*+,="),
        ("/100%25", "/100%25"),
        ("/...", "/..."),
    ] {
        assert_eq!(path(raw).as_str(), normal, "{raw}");
    }
}

#[test]
fn what_two_servers_read_differently_is_refused() {
    use PathError::*;
    for (raw, error) in [
        ("", NotAbsolute),
        ("*", NotAbsolute),
        ("http://a/", NotAbsolute),
        ("//", EmptySegment),
        ("/a//b", EmptySegment),
        ("/.", DotSegment),
        ("/a/../b", DotSegment),
        ("/a/%2e%2E/b", DotSegment),
        ("/a/..;x=1/b", DotSegment),
        ("/a/..%3b/b", DotSegment),
        ("/a/%252e%252e/b", DotSegment),
        ("/a/%25%32%65%25%32%65/b", DotSegment),
        ("/a/..%253bx/b", DotSegment),
        ("/a%2fb", EncodedSeparator),
        ("/a%252Fb", EncodedSeparator),
        ("/a%25252Fb", EncodedSeparator),
        ("/a%25%32%66b", EncodedSeparator),
        ("/a%25%32%35%32%66b", EncodedSeparator),
        ("/a%25%2532%2566b", EncodedSeparator),
        ("/a%2500", EncodedSeparator),
        ("/a%5cb", EncodedSeparator),
        ("/a%00", EncodedSeparator),
        ("/a%0d%0a", EncodedSeparator),
        ("/a\\b", Backslash),
        ("/a%", MalformedPercent),
        ("/a%2", MalformedPercent),
        ("/a%zz", MalformedPercent),
        ("/a%+1", MalformedPercent),
        ("/a b", ForbiddenByte),
        ("/a\0", ForbiddenByte),
        ("/a\u{7f}", ForbiddenByte),
        ("/é", ForbiddenByte),
        ("/a?b", ForbiddenByte),
        ("/a#b", ForbiddenByte),
        ("/%c0%ae%c0%ae/b", Overlong),
        ("/a%C0%AFb", Overlong),
        ("/a%25c0%25afb", Overlong),
        ("/a%e0%80%af", Overlong),
        ("/a%F0%80%80%AF", Overlong),
        ("/a%fc%80%80%80%80%af", Overlong),
        ("/a/;x/b", BareParameters),
        ("/a/%3bx", BareParameters),
        ("/a/%253bx/b", BareParameters),
    ] {
        assert_eq!(NormalPath::parse(raw), Err(error), "{raw:?}");
    }
}

/// Decoding round by round takes minutes for these, and a data thread serves others too.
#[test]
fn a_path_encoded_many_times_over_costs_no_more_than_another_of_its_length() {
    let start = std::time::Instant::now();
    for layer in ["25", "%25", "%2525"] {
        let raw = format!("/%25{}", layer.repeat(60_000 / layer.len()));
        let deny = Template::parse("/admin/{rest..}").unwrap();
        assert!(!deny.matches_wider(&path(&raw)));
    }
    assert!(start.elapsed() < std::time::Duration::from_secs(2));
}

#[test]
fn templates_match_whole_segments_only() {
    for (template, raw, expected) in [
        ("/v1/charges", "/v1/charges", true),
        ("/v1/charges", "/v1/charges-admin", false),
        ("/v1/charges", "/v1/charges/", false),
        ("/v1/charges", "/v1/charges/x", false),
        ("/v1/charges", "/V1/charges", false),
        ("/v1/charges/", "/v1/charges/", true),
        ("/v1/charges/{id}", "/v1/charges/ch_1", true),
        ("/v1/charges/{id}", "/v1/charges/", false),
        ("/v1/charges/{id}", "/v1/charges/a/b", false),
        ("/v1/files/{rest..}", "/v1/files/a", true),
        ("/v1/files/{rest..}", "/v1/files/a/b/", true),
        ("/v1/files/{rest..}", "/v1/files/", false),
        ("/v1/files/{rest..}", "/v1/files", false),
        ("/", "/", true),
        ("/", "/a", false),
        ("/{rest..}", "/", false),
    ] {
        assert_eq!(
            Template::parse(template).unwrap().matches(&path(raw)),
            expected,
            "{template} {raw}"
        );
    }
}

#[test]
fn a_deny_also_matches_wider_forms_of_the_path() {
    let refund = Template::parse("/v1/charges/{id}/refund").unwrap();
    for raw in [
        "/v1/charges/1/refund",
        "/v1/charges/1/refund/",
        "/V1/Charges/1/REFUND",
        "/v1/charges/1/refund;x=1",
        "/v1/charges;a/1;b/refund;c/",
        "/v1/charges/1/refund%3Bx",
        "/v1/%43harges/1/refund",
        "/v1/charges/a%20b/refund",
        "/v1/%2563harges/1/refund",
        "/v1/charges/1/refund%25253bx",
    ] {
        assert!(refund.matches_wider(&path(raw)), "{raw}");
    }
    for raw in [
        "/v1/charges/1",
        "/v1/charges/1/refunds",
        "/v1/charges/refund",
        "/v2/charges/1/refund",
    ] {
        assert!(!refund.matches_wider(&path(raw)), "{raw}");
    }
    // The Kelvin sign lower-cases to an ordinary k.
    assert!(
        Template::parse("/keys")
            .unwrap()
            .matches_wider(&path("/%E2%84%AAeys"))
    );
}

#[test]
fn a_template_that_could_never_match_is_an_error() {
    use TemplateError::*;
    for (text, error) in [
        ("v1", Path(PathError::NotAbsolute)),
        ("/a//b", Path(PathError::EmptySegment)),
        ("/a/../b", Path(PathError::DotSegment)),
        ("/a%2fb", Path(PathError::EncodedSeparator)),
        ("/a?x=1", Path(PathError::ForbiddenByte)),
        (
            "/%61/{id}",
            NotNormal {
                normal: "/a/{id}".to_owned(),
            },
        ),
        ("/{rest..}/x", RestNotLast),
        ("/a{id}", Placeholder),
        ("/{}", Placeholder),
        ("/{a.b}", Placeholder),
        ("/v1/*", Star),
    ] {
        assert_eq!(Template::parse(text), Err(error), "{text}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn normalisation_is_idempotent(raw in "/([a-cA-C./;\\\\%~ ]|%[0-9a-fA-F]{2}){0,12}") {
        if let Ok(normal) = NormalPath::parse(&raw) {
            prop_assert_eq!(NormalPath::parse(normal.as_str()), Ok(normal));
        }
    }

    #[test]
    fn a_normal_path_stays_one_however_often_a_server_decodes_it(raw in "/(a|/|%25|%32|%35|%65|%66|%3b|2|5|e|f){0,12}") {
        if let Ok(normal) = NormalPath::parse(&raw) {
            let mut decoded = normal.as_str().to_owned();
            for _ in 0..12 {
                decoded = percent_encoding::percent_decode_str(&decoded).decode_utf8_lossy().into_owned();
                let segments = || decoded.split('/').skip(1);
                prop_assert_eq!(segments().count(), normal.segments().count(), "{} {}", &raw, &decoded);
                let dots = segments().any(|segment| matches!(segment.split(';').next(), Some("." | "..")));
                prop_assert!(!dots, "{} {}", &raw, &decoded);
            }
        }
    }

    #[test]
    fn what_an_allow_matches_a_deny_matches_too(
        template in "(/(a|B|\\{x\\})){1,3}(/\\{y\\.\\.\\})?",
        raw in "(/[aB]{1,2}(;x)?){1,4}/?",
    ) {
        let template = Template::parse(&template).unwrap();
        let path = path(&raw);
        prop_assert!(!template.matches(&path) || template.matches_wider(&path));
    }
}
