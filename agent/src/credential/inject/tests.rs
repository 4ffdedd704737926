//! What leaves on a request, and what never does.

use http::Request;

use super::super::source::{Update, Value};
use super::super::spec::{CredentialSource, CredentialSpec, HostScope};
use super::*;
use crate::addr::HostName;

const SECRET: &str = "s3cr3t+/=&?#%";

fn authority(host: &str, port: u16) -> Authority {
    Authority::new(HostName::parse(host).unwrap(), port)
}

fn spec(name: &str, scheme: CredentialScheme) -> CredentialSpec {
    let scope = |path_prefix: Option<&str>, port| HostScope {
        authority: authority("api.example.com", port),
        path_prefix: path_prefix.map(str::to_owned),
    };
    CredentialSpec {
        name: CredentialName::parse(name).unwrap(),
        hosts: vec![scope(None, 443), scope(Some("/v1"), 8443)],
        scheme,
        source: CredentialSource::Systemd { name: "x".to_owned() },
    }
}

fn store(scheme: CredentialScheme) -> Store {
    let store = Store::new();
    store.configure([spec("key", scheme)]);
    store.update(Update {
        name: name(),
        value: Value::Ready {
            secret: Secret::new(SECRET.as_bytes().to_vec()).unwrap(),
            version: "1@now".into(),
        },
    });
    store
}

fn request(uri: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn name() -> CredentialName {
    CredentialName::parse("key").unwrap()
}

/// Puts the credential `key` on, to `authority`, over TLS.
fn put_on(
    store: &Store,
    authority: &Authority,
    client_auth: ClientAuth,
    parts: &mut Parts,
) -> Result<Option<Injected>, Error> {
    let name = name();
    let leave = Leave {
        authority,
        scheme: Scheme::Https,
        client_auth,
        credential: Some(&name),
    };
    apply(&leave, store, parts)
}

#[test]
fn each_scheme_puts_the_value_where_it_says() {
    let header = |name, prefix: Option<&str>| CredentialScheme::Header {
        name: HeaderName::from_static(name),
        prefix: prefix.map(str::to_owned),
    };
    let basic = CredentialScheme::Basic {
        username: "user".to_owned(),
    };
    for (scheme, name, value) in [
        (
            CredentialScheme::Bearer,
            "authorization",
            format!("Bearer {SECRET}"),
        ),
        (
            basic,
            "authorization",
            format!("Basic {}", STANDARD.encode(format!("user:{SECRET}"))),
        ),
        (header("x-api-key", None), "x-api-key", SECRET.to_owned()),
        (
            header("authorization", Some("token ")),
            "authorization",
            format!("token {SECRET}"),
        ),
    ] {
        let mut parts = request(
            "/v1/a?b=c",
            &[
                ("x_api-key", "client"),
                ("x-api-key", "client"),
                ("authorization", "client"),
            ],
        );
        let injected = put_on(
            &store(scheme),
            &authority("api.example.com", 443),
            ClientAuth::Pass,
            &mut parts,
        );
        assert_eq!(injected.unwrap().unwrap().version.as_ref(), "1@now");
        let values: Vec<_> = parts.headers.get_all(name).iter().collect();
        assert_eq!(values, [value.as_str()]);
        assert!(values[0].is_sensitive());
        assert!(name != "x-api-key" || !parts.headers.contains_key("x_api-key"));
        assert_eq!(parts.uri, "/v1/a?b=c");
    }
}

#[test]
fn nothing_that_is_read_as_the_credentials_header_stays_beside_it() {
    let scheme = CredentialScheme::Header {
        name: HeaderName::from_static("x-house-key"),
        prefix: None,
    };
    let own = ["x-house-key", "x_house_key", "x-house_key", "x-plain"];
    let mut parts = request("/v1/a", &own.map(|name| (name, "client")));
    let injected = put_on(
        &store(scheme),
        &authority("api.example.com", 443),
        ClientAuth::Pass,
        &mut parts,
    );
    assert_eq!(injected.unwrap().unwrap().header.unwrap(), "x-house-key");
    let left: Vec<_> = parts
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value))
        .collect();
    let value = HeaderValue::from_static(SECRET);
    assert_eq!(
        left,
        [
            ("x-plain", &HeaderValue::from_static("client")),
            ("x-house-key", &value)
        ]
    );
}

#[test]
fn a_query_credential_is_encoded_and_takes_the_place_of_the_clients() {
    let encoded = "s3cr3t%2B%2F%3D%26%3F%23%25";
    for (uri, want) in [
        ("/v1/a", format!("/v1/a?my%20key={encoded}")),
        ("/v1/a?", format!("/v1/a?my%20key={encoded}")),
        ("/v1/a?b=c&d=%20", format!("/v1/a?b=c&d=%20&my%20key={encoded}")),
        (
            "/v1/a?my+key=x&b=c&My%20Key=y&my_key[]=z&my.key=z",
            format!("/v1/a?b=c&my%20key={encoded}"),
        ),
        (
            "https://api.example.com/v1/a?b",
            format!("https://api.example.com/v1/a?b&my%20key={encoded}"),
        ),
    ] {
        let scheme = CredentialScheme::Query {
            name: "my key".to_owned(),
        };
        let mut parts = request(uri, &[]);
        put_on(
            &store(scheme),
            &authority("api.example.com", 443),
            ClientAuth::Pass,
            &mut parts,
        )
        .unwrap();
        assert_eq!(parts.uri.to_string(), want);
    }
}

#[test]
fn a_credential_goes_nowhere_but_to_its_own_hosts_and_paths() {
    let store = store(CredentialScheme::Bearer);
    for (host, port, path, good) in [
        ("api.example.com", 443, "/", true),
        ("api.example.com", 443, "/v2", true),
        ("api.example.com", 8443, "/v1", true),
        ("api.example.com", 8443, "/v1/a", true),
        ("api.example.com", 8443, "/v1-admin", false),
        ("api.example.com", 8443, "/v2", false),
        ("api.example.com", 8443, "/", false),
        ("api.example.com", 80, "/", false),
        ("www.api.example.com", 443, "/", false),
        ("example.com", 443, "/", false),
    ] {
        let mut parts = request(path, &[]);
        let result = put_on(&store, &authority(host, port), ClientAuth::Strip, &mut parts);
        assert_eq!(result.is_ok(), good, "{host}:{port}{path}");
        if !good {
            assert!(matches!(result, Err(Error::Elsewhere { .. })));
            assert!(parts.headers.is_empty());
        }
    }
}

#[test]
fn a_request_for_another_place_than_its_permit_is_refused() {
    let store = store(CredentialScheme::Bearer);
    for uri in [
        "https://evil.example.com/",
        "https://api.example.com:8443/",
        "http://api.example.com/",
        "http://api.example.com:443/",
    ] {
        let mut parts = request(uri, &[]);
        let result = put_on(
            &store,
            &authority("api.example.com", 443),
            ClientAuth::Strip,
            &mut parts,
        );
        assert!(matches!(result, Err(Error::NotPermitted { .. })), "{uri}");
        assert!(parts.headers.is_empty());
    }
    let mut parts = request("https://API.example.com:443/", &[]);
    put_on(
        &store,
        &authority("api.example.com", 443),
        ClientAuth::Strip,
        &mut parts,
    )
    .unwrap();
}

#[test]
fn without_a_value_the_request_is_refused() {
    let store = store(CredentialScheme::Bearer);
    let place = authority("api.example.com", 443);
    store.update(Update {
        name: name(),
        value: Value::Unavailable {
            reason: "the file is gone".into(),
        },
    });
    let error = put_on(&store, &place, ClientAuth::Strip, &mut request("/", &[])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "credential `key` has no value: the file is gone"
    );
    store.configure([]);
    let error = put_on(&store, &place, ClientAuth::Strip, &mut request("/", &[])).unwrap_err();
    assert!(matches!(error, Error::Unknown { .. }));
}

#[test]
fn a_new_policy_keeps_the_values_of_what_it_did_not_change() {
    let store = store(CredentialScheme::Bearer);
    store.configure([
        spec("key", CredentialScheme::Bearer),
        spec("other", CredentialScheme::Bearer),
    ]);
    let ready: Vec<_> = store
        .list()
        .into_iter()
        .map(|(name, state)| (name.to_string(), state.is_ok()))
        .collect();
    assert_eq!(ready, [("key".to_owned(), true), ("other".to_owned(), false)]);
    store.configure([spec("key", CredentialScheme::Query { name: "k".to_owned() })]);
    assert!(store.list()[0].1.is_err());
}

#[test]
fn a_scheme_that_can_not_carry_the_value_leaves_it_unavailable() {
    let bad_user = CredentialScheme::Basic {
        username: "a:b".to_owned(),
    };
    let bad_prefix = CredentialScheme::Header {
        name: HeaderName::from_static("x-key"),
        prefix: Some("a\r\n".to_owned()),
    };
    for scheme in [bad_user, bad_prefix] {
        let state = store(scheme).list().remove(0).1;
        assert!(!state.unwrap_err().contains(SECRET));
    }
}

#[test]
fn the_clients_own_credentials_stay_only_where_the_rule_passes_them() {
    let place = authority("api.example.com", 443);
    for (client_auth, stays) in [(ClientAuth::Strip, false), (ClientAuth::Pass, true)] {
        let leave = Leave {
            authority: &place,
            scheme: Scheme::Https,
            client_auth,
            credential: None,
        };
        let mut parts = request(
            "/a?sig=1&b=2",
            &[("Authorization", "x"), ("Cookie", "a=b"), ("Accept", "*/*")],
        );
        assert_eq!(apply(&leave, &Store::new(), &mut parts).unwrap(), None);
        assert_eq!(parts.headers.contains_key("authorization"), stays);
        assert_eq!(parts.headers.contains_key("cookie"), stays);
        assert!(parts.headers.contains_key("accept"));
        assert_eq!(parts.uri.query(), Some(if stays { "sig=1&b=2" } else { "b=2" }));
    }
}

#[test]
fn nothing_that_can_be_formatted_shows_the_value() {
    let scheme = CredentialScheme::Header {
        name: HeaderName::from_static("x-api-key"),
        prefix: None,
    };
    let store = store(scheme.clone());
    let mut parts = request("/", &[]);
    let injected = put_on(
        &store,
        &authority("api.example.com", 443),
        ClientAuth::Strip,
        &mut parts,
    )
    .unwrap();
    let secret = Secret::new(SECRET.as_bytes().to_vec()).unwrap();
    let prepared = prepare(&scheme, &secret).unwrap();
    let elsewhere = put_on(
        &store,
        &authority("evil.example.com", 443),
        ClientAuth::Strip,
        &mut request("/", &[]),
    );
    let update = Update {
        name: name(),
        value: Value::Ready {
            secret,
            version: "1".into(),
        },
    };
    let all = format!(
        "{store:?} {injected:?} {prepared:?} {elsewhere:?} {update:?} {:?} {parts:?}",
        store.list()
    );
    assert!(!all.contains(SECRET), "{all}");
    assert!(all.contains("Sensitive"));
}
