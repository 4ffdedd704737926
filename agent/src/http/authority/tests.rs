//! Tests of `http::authority`.

#![expect(
    clippy::unwrap_in_result,
    reason = "helpers hand back the answer under test; what else fails is the test's own fault"
)]

use http::Request;
use proptest::prelude::*;

use super::*;

fn parts(version: Version, target: &str, hosts: &[&str]) -> Parts {
    let mut request = Request::builder().version(version).uri(target);
    for host in hosts {
        request = request.header(HOST, *host);
    }
    request.body(()).unwrap().into_parts().0
}

fn over_tls(version: Version, target: &str, hosts: &[&str], port: u16) -> Result<String, DenialReason> {
    let sni = "api.example.com".parse().unwrap();
    settle(
        &mut parts(version, target, hosts),
        Scheme::Https,
        Some(&sni),
        port,
    )
    .map(|it| it.to_string())
}

fn http1(target: &str, hosts: &[&str]) -> Result<String, DenialReason> {
    over_tls(Version::HTTP_11, target, hosts, 443)
}

#[test]
fn agreeing_names_give_the_authority() {
    let good = Ok("api.example.com:443".to_owned());
    for host in [
        "api.example.com",
        "API.Example.COM",
        "api.example.com.",
        "api.example.com:443",
    ] {
        assert_eq!(http1("/v1", &[host]), good, "{host}");
    }
    assert_eq!(http1("https://API.example.com/v1", &["api.example.com"]), good);
    assert_eq!(
        over_tls(Version::HTTP_2, "https://api.example.com/", &[], 443),
        good
    );
    assert_eq!(over_tls(Version::HTTP_2, "/", &["api.example.com"], 443), good);
    assert_eq!(
        over_tls(Version::HTTP_11, "/", &["api.example.com:8443"], 8443),
        Ok("api.example.com:8443".to_owned())
    );
}

#[test]
fn names_that_disagree_are_a_mismatch() {
    let wrong = Err(DenialReason::NameMismatch);
    assert_eq!(http1("/", &["other.example.com"]), wrong);
    assert_eq!(http1("/", &["sub.api.example.com"]), wrong);
    assert_eq!(http1("https://other.example.com/", &["api.example.com"]), wrong);
    assert_eq!(http1("https://api.example.com/", &["other.example.com"]), wrong);
    assert_eq!(
        http1("http://api.example.com/", &["api.example.com"]),
        wrong,
        "scheme"
    );
    assert_eq!(http1("/", &["api.example.com:8443"]), wrong, "port not dialled");
    assert_eq!(
        over_tls(Version::HTTP_11, "/", &["api.example.com"], 8443),
        wrong,
        "port not named"
    );
    assert_eq!(
        over_tls(Version::HTTP_2, "https://api.example.com/", &["b.example"], 443),
        wrong
    );
}

#[test]
fn malformed_names_are_refused() {
    for host in [
        "user@api.example.com",
        "api.example.com:",
        "api.example.com:0",
        "api.example.com:0443",
        "api.example.com:+443",
        "api.example.com:70000",
        "api.example.com:443:443",
        "api.example.com,b.example",
        "api.example.com/",
        "api.example.com b",
        ":443",
        "*.example.com",
    ] {
        assert_eq!(http1("/", &[host]), Err(DenialReason::MalformedRequest), "{host}");
    }
    let twice = ["api.example.com", "api.example.com"];
    assert_eq!(http1("/", &twice), Err(DenialReason::MalformedRequest));
    assert_eq!(
        http1("https://u@api.example.com/", &["api.example.com"]),
        Err(DenialReason::MalformedRequest)
    );
    assert_eq!(
        http1("api.example.com:443", &["api.example.com"]),
        Err(DenialReason::MalformedRequest)
    );
    assert_eq!(
        http1("ftp://api.example.com/", &["api.example.com"]),
        Err(DenialReason::MalformedRequest)
    );
}

#[test]
fn nothing_or_an_address_is_no_name() {
    for hosts in [
        [].as_slice(),
        &[""],
        &["192.0.2.1"],
        &["[2001:db8::1]"],
        &["[2001:db8::1]:443"],
        &["127.1"],
    ] {
        assert_eq!(http1("/", hosts), Err(DenialReason::NoName), "{hosts:?}");
    }
    let mut request = parts(Version::HTTP_11, "/", &["api.example.com"]);
    assert_eq!(
        settle(&mut request, Scheme::Https, None, 443),
        Err(DenialReason::NoName)
    );
    assert_eq!(
        http1("https://api.example.com/", &[]),
        Err(DenialReason::NoName),
        "HTTP/1 needs Host"
    );
}

#[test]
fn plain_http_has_no_sni_and_port_80() {
    let mut request = parts(Version::HTTP_10, "http://Plain.example/x?y", &["plain.example"]);
    let authority = settle(&mut request, Scheme::Http, None, 80).unwrap();
    assert_eq!(authority.to_string(), "plain.example:80");
    assert_eq!(request.uri, "/x?y");
}

#[test]
fn what_goes_out_is_written_anew() {
    let sni = "api.example.com".parse().unwrap();
    let mut request = parts(
        Version::HTTP_11,
        "https://API.example.com:443/a?b",
        &["Api.Example.com.:443"],
    );
    let authority = settle(&mut request, Scheme::Https, Some(&sni), 443).unwrap();
    assert_eq!(request.uri, "/a?b");
    assert_eq!(request.headers[HOST], "api.example.com");
    to_http2(&mut request, &authority, Scheme::Https).unwrap();
    assert_eq!(request.uri, "https://api.example.com/a?b");
    assert!(!request.headers.contains_key(HOST));
}

proptest! {
    #[test]
    fn whatever_host_comes_the_answer_is_the_sni_or_a_denial(host in "[ -~]{0,30}", port in any::<u16>()) {
        let sni: HostName = "api.example.com".parse().unwrap();
        let mut request = parts(Version::HTTP_11, "/", &[&host]);
        if let Ok(authority) = settle(&mut request, Scheme::Https, Some(&sni), port) {
            prop_assert_eq!(authority, Authority::new(sni, port));
        }
    }
}
