//! What is allowed, what is refused, and which words say so.

use super::*;

const STRIPE: &str = r#"
[[workload]]
name = "w"
units = ["app.service"]

  [[workload.allow]]
  name = "charges"
  host = "api.stripe.com"
  methods = ["GET", "POST"]
  paths = ["/v1/charges", "/v1/charges/{id}", "/v1/files/{rest..}"]
  credential = "stripe"

  [[workload.allow]]
  name = "one-charge"
  host = "api.stripe.com"
  methods = ["GET"]
  paths = ["/v1/charges/ch_special"]

  [[workload.allow]]
  name = "wild"
  host = "*.example.com"
  port = 8443

  [[workload.allow]]
  name = "plain"
  host = "plain.example.com"
  scheme = "http"

  [[workload.allow]]
  name = "as-root"
  host = "root.example.com"
  exe = "/usr/bin/other"

  [[workload.allow]]
  name = "search"
  host = "search.example.com"
  query = { mode = ["read", "peek*"] }
  headers = { x-op = "Get*" }

  [[workload.deny]]
  name = "no-refunds"
  host = "api.stripe.com"
  paths = ["/v1/charges/{id}/refund", "/v1/files/secret"]

  [[workload.tunnel]]
  host = "pinned.example.com"
  exe = "/usr/bin/other"

[credential.stripe]
hosts = ["api.stripe.com:443/v1"]
scheme = "bearer"
source = { file = "/etc/callgate/secrets/stripe" }
"#;

#[test]
fn calls_are_decided_as_the_rules_say() {
    let policy = policy(STRIPE);
    for (method, url, expected) in [
        ("GET", "https://api.stripe.com/v1/charges", "allow charges stripe"),
        (
            "POST",
            "https://api.stripe.com/v1/charges/ch_1",
            "allow charges stripe",
        ),
        (
            "GET",
            "https://api.stripe.com/v1/charges/ch_special",
            "allow one-charge -",
        ),
        // The more specific rule has no POST, so the other one answers.
        (
            "POST",
            "https://api.stripe.com/v1/charges/ch_special",
            "allow charges stripe",
        ),
        (
            "GET",
            "https://api.stripe.com/v1/files/a/b",
            "allow charges stripe",
        ),
        (
            "GET",
            "https://api.stripe.com/v1/files/Secret;x/",
            "deny deny_rule no-refunds",
        ),
        (
            "POST",
            "https://api.stripe.com/v1/charges/1/REFUND",
            "deny deny_rule no-refunds",
        ),
        (
            "DELETE",
            "https://api.stripe.com/v1/charges",
            "deny call_not_allowed charges",
        ),
        (
            "get",
            "https://api.stripe.com/v1/charges",
            "deny call_not_allowed charges",
        ),
        (
            "GET",
            "https://api.stripe.com/v1/charges-admin",
            "deny call_not_allowed -",
        ),
        (
            "GET",
            "https://api.stripe.com:8443/v1/charges",
            "deny host_not_allowed -",
        ),
        ("GET", "http://api.stripe.com/v1/charges", "deny plain_http -"),
        ("GET", "https://evil.net/", "deny host_not_allowed -"),
        ("GET", "https://a.example.com:8443/x", "allow wild -"),
        ("GET", "https://a.b.example.com:8443/x", "deny host_not_allowed -"),
        ("GET", "https://example.com:8443/x", "deny host_not_allowed -"),
        ("GET", "http://plain.example.com/x", "allow plain -"),
        (
            "GET",
            "https://root.example.com/",
            "deny caller_not_allowed as-root",
        ),
        ("GET", "https://pinned.example.com/", "deny caller_not_allowed -"),
    ] {
        assert_eq!(
            outcome(&policy, &caller(), &Request::new(method, url)),
            expected,
            "{method} {url}"
        );
    }
}

#[test]
fn query_and_headers_must_match_too() {
    let policy = policy(STRIPE);
    for (query, header, expected) in [
        ("mode=read", "GetItem", "allow search -"),
        ("a=b&mode=peeking", "Get", "allow search -"),
        ("mode=write", "GetItem", "deny call_not_allowed search"),
        ("mode=read&mode=write", "GetItem", "deny call_not_allowed search"),
        ("", "GetItem", "deny call_not_allowed search"),
        ("mode=read", "PutItem", "deny call_not_allowed search"),
    ] {
        let request =
            Request::new("GET", &format!("https://search.example.com/?{query}")).header("x-op", header);
        assert_eq!(
            outcome(&policy, &caller(), &request),
            expected,
            "{query} {header}"
        );
    }
}

#[test]
fn a_caller_who_does_not_meet_the_workload_gets_nothing() {
    let policy = policy(STRIPE);
    let request = Request::new("GET", "https://api.stripe.com/v1/charges");
    for unit in [None, Some("other.service".into())] {
        let identity = Identity { unit, ..caller() };
        assert_eq!(outcome(&policy, &identity, &request), "deny not_this_workload -");
    }
    let identity = Identity {
        workload: WorkloadName::parse("x").unwrap(),
        ..caller()
    };
    assert_eq!(outcome(&policy, &identity, &request), "deny unknown_workload -");
}

#[test]
fn an_absent_fact_matches_no_allow_and_every_deny() {
    for (condition, known) in [
        ("exe = '/usr/bin/app'", true),
        ("exe = '/usr/bin/other'", false),
        (
            "exe_sha256 = 'abababababababababababababababababababababababababababababababab'",
            true,
        ),
        ("units = ['app*.service']", true),
        ("user = 'app'", true),
        ("user = ['other', 1000]", true),
        ("user = 'other'", false),
        ("container = '0123456789ab'", false),
    ] {
        let allow = policy(&format!(
            "[[workload]]\nname='w'\n[[workload.allow]]\nname='a'\nhost='a.b'\n{condition}"
        ));
        let deny = policy(&format!(
            "[[workload]]\nname='w'\n[[workload.allow]]\nname='a'\nhost='a.b'\n[[workload.deny]]\nname='d'\nhost='a.b'\n{condition}"
        ));
        let request = Request::new("GET", "https://a.b/");
        let unknown = Identity {
            unit: None,
            user: None,
            executable: None,
            uid: 5,
            ..caller()
        };
        let container = condition.starts_with("container");
        let allowed = "allow a -";
        let expected = if known {
            allowed
        } else {
            "deny caller_not_allowed a"
        };
        assert_eq!(outcome(&allow, &caller(), &request), expected, "{condition}");
        assert_eq!(
            outcome(&allow, &unknown, &request),
            "deny caller_not_allowed a",
            "{condition}"
        );
        assert_eq!(
            outcome(&deny, &unknown, &request),
            "deny deny_rule d",
            "{condition}"
        );
        let expected = if known || container {
            "deny deny_rule d"
        } else {
            allowed
        };
        assert_eq!(outcome(&deny, &caller(), &request), expected, "{condition}");
    }
}

#[test]
fn observe_lets_through_without_a_credential_and_says_what_would_have_been() {
    let policy = policy(&STRIPE.replace("name = \"w\"", "name = \"w\"\nmode = \"observe\""));
    let allowed = Request::new("GET", "https://api.stripe.com/v1/charges");
    assert_eq!(outcome(&policy, &caller(), &allowed), "allow charges stripe");
    let other = Request::new("GET", "https://evil.net/");
    assert_eq!(outcome(&policy, &caller(), &other), "observe host_not_allowed -");
    let Decision::Allow(permit) = decide(&policy, &caller(), &other.call()) else {
        panic!()
    };
    assert_eq!(
        (permit.credential(), permit.client_auth(), permit.private()),
        (None, ClientAuth::Pass, false)
    );
}

#[test]
fn a_deny_without_a_host_is_for_all_hosts() {
    let policy = policy(
        "[[workload]]\nname='w'\n[[workload.allow]]\nname='a'\nhost='a.b'\n\
         [[workload.deny]]\nname='d'\nmethods=['DELETE']\n[[workload.deny]]\nname='e'\npaths='/admin/{x..}'",
    );
    for (method, path, expected) in [
        ("GET", "/", "allow a -"),
        ("DELETE", "/", "deny deny_rule d"),
        ("delete", "/", "deny deny_rule d"),
        ("GET", "/Admin/x", "deny deny_rule e"),
        ("DELETE", "/admin/x", "deny deny_rule d"),
    ] {
        let request = Request::new(method, &format!("https://a.b{path}"));
        assert_eq!(outcome(&policy, &caller(), &request), expected, "{method} {path}");
    }
}

#[test]
fn the_most_specific_path_names_the_credential_also_across_a_wildcard_host() {
    let policy = policy(
        "[[workload]]\nname='w'\n\
         [[workload.allow]]\nname='exact'\nhost='a.b.c'\npaths='/{x}'\n\
         [[workload.allow]]\nname='wild'\nhost='*.b.c'\npaths=['/x', '/{y}']",
    );
    for (path, expected) in [("/x", "allow wild -"), ("/z", "allow exact -")] {
        let request = Request::new("GET", &format!("https://a.b.c{path}"));
        assert_eq!(outcome(&policy, &caller(), &request), expected, "{path}");
    }
}

#[test]
fn explain_names_the_first_thing_that_did_not_match() {
    let policy = policy(STRIPE);
    let request = Request::new("DELETE", "https://api.stripe.com/v1/charges");
    let explanation = explain::explain(&policy, &caller(), &request.call()).unwrap();
    let of = |label: &str| {
        explanation
            .considered
            .iter()
            .find(|rule| &*rule.label == label)
            .unwrap()
            .miss
    };
    assert_eq!(of("charges"), Some(explain::Miss::Method));
    assert_eq!(of("no-refunds"), Some(explain::Miss::Path));
    assert_eq!(of("plain"), Some(explain::Miss::Host));
}

#[test]
fn what_answers_a_get_is_not_to_be_had_by_head() {
    let denied = policy(
        "[[workload]]\nname='w'\n[[workload.allow]]\nname='all'\nhost='a.b'\n\
         [[workload.deny]]\nname='none'\nhost='a.b'\npaths='/get'\nmethods='GET'\n\
         [[workload.deny]]\nname='head'\nhost='a.b'\npaths='/head'\nmethods='HEAD'\n",
    );
    for (method, path, expected) in [
        ("GET", "/get", "deny deny_rule none"),
        ("HEAD", "/get", "deny deny_rule none"),
        ("head", "/get", "deny deny_rule none"),
        ("POST", "/get", "allow all -"),
        ("HEAD", "/head", "deny deny_rule head"),
        ("GET", "/head", "allow all -"),
    ] {
        let request = Request::new(method, &format!("https://a.b{path}"));
        assert_eq!(outcome(&denied, &caller(), &request), expected, "{method} {path}");
    }
    let allowed = policy("[[workload]]\nname='w'\n[[workload.allow]]\nhost='a.b'\nmethods='GET'\n");
    let head = Request::new("HEAD", "https://a.b/");
    assert!(outcome(&allowed, &caller(), &head).starts_with("deny call_not_allowed"));
}

#[test]
fn a_later_permit_keeps_a_call_that_has_no_more_than_it_gives() {
    let permit = |rule: &str| {
        let text = format!(
            "[credential.s]\nhosts='a.b'\nscheme='bearer'\nsource={{file='/s'}}\n\
             [credential.t]\nhosts='a.b'\nscheme='bearer'\nsource={{file='/t'}}\n\
             [[workload]]\nname='w'\n[[workload.allow]]\nhost='a.b'\n{rule}\n"
        );
        match decide(
            &policy(&text),
            &caller(),
            &Request::new("GET", "https://a.b/").call(),
        ) {
            Decision::Allow(permit) => permit,
            Decision::Deny(denial) => panic!("{denial:?}"),
        }
    };
    for (before, now, kept) in [
        ("", "", true),
        ("credential='s'", "credential='s'", true),
        ("credential='s'", "credential='t'", false),
        ("credential='s'", "", false),
        ("", "credential='s'", true),
        ("client_auth='pass'", "client_auth='pass'", true),
        ("client_auth='pass'", "", false),
        ("", "client_auth='pass'", true),
        ("private=true", "private=true", true),
        ("private=true", "", false),
        ("", "private=true", true),
    ] {
        assert_eq!(permit(now).keeps(&permit(before)), kept, "{before} {now}");
    }
    let seen = policy("[[workload]]\nname='w'\nmode='observe'\n");
    let observed = match decide(&seen, &caller(), &Request::new("GET", "https://a.b/").call()) {
        Decision::Allow(observed) => observed,
        Decision::Deny(denial) => panic!("{denial:?}"),
    };
    assert!(
        permit("").keeps(&observed),
        "a rule for what was observed ends nothing"
    );
}
