//! Tests of `http::headers`: its own rules, and what hyper's server makes of hostile heads.

#![expect(
    clippy::unwrap_in_result,
    reason = "helpers hand back the answer under test; what else fails is the test's own fault"
)]

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::websocket::{BadSwitch, check_switch};
use super::*;

fn parts(method: &str, version: Version, headers: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().method(method).version(version).uri("/");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn form11(method: &str, headers: &[(&str, &str)]) -> Result<Form, DenialReason> {
    form(&parts(method, Version::HTTP_11, headers))
}

fn cleaned(headers: &[(&str, &str)]) -> Vec<(String, String)> {
    let mut headers = parts("GET", Version::HTTP_11, headers).headers;
    clean_request(&mut headers, &Form::Plain);
    let text = |value: &HeaderValue| value.to_str().unwrap().to_owned();
    headers
        .iter()
        .map(|(name, value)| (name.to_string(), text(value)))
        .collect()
}

const UPGRADE_REQUEST: [(&str, &str); 4] = [
    ("upgrade", "WebSocket"),
    ("connection", "keep-alive, Upgrade"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ("sec-websocket-version", "13"),
];

#[test]
fn ordinary_requests_are_plain() {
    for method in ["GET", "POST", "OPTIONS", "PROPFIND"] {
        assert_eq!(form11(method, &[("content-length", "5")]), Ok(Form::Plain));
    }
    assert_eq!(
        form11("POST", &[("transfer-encoding", "Chunked")]),
        Ok(Form::Plain)
    );
    assert_eq!(
        form(&parts("POST", Version::HTTP_2, &[("te", "trailers")])),
        Ok(Form::Plain)
    );
}

#[test]
fn tunnels_echoes_and_other_upgrades_are_forbidden() {
    for method in ["CONNECT", "TRACE", "TRACK", "PRI"] {
        assert_eq!(form11(method, &[]), Err(DenialReason::ForbiddenForm), "{method}");
    }
    for upgrade in ["h2c", "websocket, h2c", "TLS/1.0", ""] {
        let headers = [("upgrade", upgrade), ("connection", "upgrade")];
        assert_eq!(
            form11("GET", &headers),
            Err(DenialReason::ForbiddenForm),
            "{upgrade}"
        );
    }
}

#[test]
fn framing_that_can_be_read_twice_is_malformed() {
    for headers in [
        [("content-length", "5"), ("transfer-encoding", "chunked")].as_slice(),
        &[("content-length", "5"), ("content-length", "5")],
        &[("content-length", "+5")],
        &[("content-length", "5, 5")],
        &[("content-length", "")],
        &[("content-length", "0x5")],
        &[("content-length", "99999999999999999999")],
        &[("transfer-encoding", "gzip, chunked")],
        &[("transfer-encoding", "chunked, chunked")],
        &[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
        &[("transfer-encoding", "identity")],
        &[("connection", "Host")],
        &[("connection", "close, Content-Length")],
        &[("connection", "authorization")],
        &[("connection", "close"), ("connection", "cookie")],
    ] {
        assert_eq!(
            form11("POST", headers),
            Err(DenialReason::MalformedRequest),
            "{headers:?}"
        );
    }
    for header in [
        ("connection", "close"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "websocket"),
    ] {
        let request = parts("GET", Version::HTTP_2, &[header]);
        assert_eq!(
            form(&request),
            Err(DenialReason::MalformedRequest),
            "{header:?} in HTTP/2"
        );
    }
    let old = parts("POST", Version::HTTP_10, &[("transfer-encoding", "chunked")]);
    assert_eq!(form(&old), Err(DenialReason::MalformedRequest));
}

#[test]
fn hop_by_hop_headers_and_those_that_connection_names_go() {
    let headers = [
        ("connection", "close, X-Hop"),
        ("connection", "x-other,, te"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("proxy-authorization", "Basic eA=="),
        ("transfer-encoding", "chunked"),
        ("expect", "100-continue"),
        ("http2-settings", "AAMAAABk"),
        ("x-hop", "1"),
        ("x-other", "2"),
        ("x-kept", "3"),
    ];
    assert_eq!(cleaned(&headers), [("x-kept".to_owned(), "3".to_owned())]);
}

#[test]
fn of_te_only_trailers_stays() {
    assert_eq!(cleaned(&[("te", "gzip, Trailers;q=1")]), []);
    assert_eq!(
        cleaned(&[("te", "gzip, Trailers")]),
        [("te".to_owned(), "trailers".to_owned())]
    );
}

#[test]
fn headers_that_rewrite_method_or_target_go_in_every_spelling() {
    for name in OVERRIDES {
        assert_eq!(
            cleaned(&[(name, "DELETE"), (&name.replace('-', "_"), "DELETE")]),
            [],
            "{name}"
        );
    }
    assert_eq!(cleaned(&[("X_HTTP-Method_Override", "DELETE")]), []);
    assert_eq!(cleaned(&[("x-hosted", "1"), ("x-forwarded-for", "2")]).len(), 2);
}

#[test]
fn cookies_come_back_only_where_no_credential_was_put_on() {
    let response = HeaderMap::from_iter([
        (ALT_SVC, HeaderValue::from_static("h3=\":443\"")),
        (SET_COOKIE, HeaderValue::from_static("a=b")),
        (UPGRADE, HeaderValue::from_static("h2")),
        (CONNECTION, HeaderValue::from_static("Upgrade")),
        (CONTENT_TYPE, HeaderValue::from_static("text/plain")),
    ]);
    let mut open = response.clone();
    clean_response(&mut open, &Form::Plain, false);
    assert!(open.len() == 2 && open.contains_key(SET_COOKIE) && open.contains_key(CONTENT_TYPE));
    let mut credentialed = response;
    clean_response(&mut credentialed, &Form::Plain, true);
    assert_eq!(credentialed.keys().collect::<Vec<_>>(), [&CONTENT_TYPE]);
}

#[test]
fn trailers_carry_no_credentials_and_no_framing() {
    let mut trailers = parts(
        "GET",
        Version::HTTP_2,
        &[
            ("authorization", "Bearer x"),
            ("cookie", "a=b"),
            ("set-cookie", "a=b"),
            ("content-length", "3"),
            ("x-http-method-override", "DELETE"),
            ("grpc-status", "0"),
            ("x-amz-checksum-sha256", "y"),
        ],
    )
    .headers;
    clean_trailers(&mut trailers);
    let mut left: Vec<_> = trailers.keys().map(HeaderName::as_str).collect();
    left.sort_unstable();
    assert_eq!(left, ["grpc-status", "x-amz-checksum-sha256"]);
}

#[test]
fn a_valid_websocket_request_passes_with_its_two_hop_headers() {
    let request = parts("GET", Version::HTTP_11, &UPGRADE_REQUEST);
    let form = form(&request).unwrap();
    assert!(matches!(form, Form::WebSocket(_)));
    let mut headers = request.headers;
    clean_request(&mut headers, &form);
    assert_eq!(headers[UPGRADE], "websocket");
    assert_eq!(headers[CONNECTION], "Upgrade");
    assert!(headers.contains_key("sec-websocket-key"));
}

#[test]
fn a_websocket_request_with_one_thing_wrong_is_forbidden() {
    for (name, wrong) in [
        ("connection", "close"),
        ("sec-websocket-version", "12"),
        ("sec-websocket-key", "c2hvcnQ="),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ!="),
        ("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAAAA"),
    ] {
        let headers = UPGRADE_REQUEST.map(|(key, value)| (key, if key == name { wrong } else { value }));
        assert_eq!(
            form11("GET", &headers),
            Err(DenialReason::ForbiddenForm),
            "{name}: {wrong}"
        );
    }
    assert_eq!(form11("POST", &UPGRADE_REQUEST), Err(DenialReason::ForbiddenForm));
    let with_body = [UPGRADE_REQUEST.as_slice(), &[("content-length", "3")]].concat();
    assert_eq!(form11("GET", &with_body), Err(DenialReason::ForbiddenForm));
    let two_keys = [
        UPGRADE_REQUEST.as_slice(),
        &[("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")],
    ]
    .concat();
    assert_eq!(form11("GET", &two_keys), Err(DenialReason::ForbiddenForm));
}

fn switch(form: &Form, headers: &[(&str, &str)]) -> Result<(), BadSwitch> {
    let mut response = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    check_switch(form, &response.body(()).unwrap().into_parts().0)
}

#[test]
fn a_101_is_passed_only_as_the_answer_to_the_key() {
    let good = [
        ("upgrade", "websocket"),
        ("connection", "Upgrade"),
        ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
    ];
    let asked = form11("GET", &UPGRADE_REQUEST).unwrap();
    assert_eq!(switch(&asked, &good), Ok(()));
    assert_eq!(switch(&Form::Plain, &good), Err(BadSwitch::Unasked));
    let with = |more: (&'static str, &'static str)| switch(&asked, &[good.as_slice(), &[more]].concat());
    assert_eq!(
        with(("sec-websocket-protocol", "chat")),
        Err(BadSwitch::Invalid("sec-websocket-protocol"))
    );
    assert_eq!(
        with(("sec-websocket-extensions", "x")),
        Err(BadSwitch::Invalid("sec-websocket-extensions"))
    );
    for index in 0..good.len() {
        let mut wrong = good;
        wrong[index].1 = "h2c";
        assert_eq!(switch(&asked, &wrong), Err(BadSwitch::Invalid(good[index].0)));
    }
    let protocols = [
        UPGRADE_REQUEST.as_slice(),
        &[("sec-websocket-protocol", "chat, super")],
    ]
    .concat();
    let asked = form11("GET", &protocols).unwrap();
    assert_eq!(
        switch(
            &asked,
            &[good.as_slice(), &[("sec-websocket-protocol", "super")]].concat()
        ),
        Ok(())
    );
}

/// What the whole of hyper and this module make of raw bytes: hyper's own refusal, ours, or the body read.
async fn outcome(raw: &str) -> String {
    let (mut client, server) = tokio::io::duplex(1 << 16);
    let service = service_fn(|request: Request<Incoming>| async {
        let (parts, body) = request.into_parts();
        let text = match form(&parts) {
            Ok(_) => match body.collect().await {
                Ok(body) => format!("body={:?}", body.to_bytes()),
                Err(_) => "broken body".to_owned(),
            },
            Err(reason) => reason.code().to_owned(),
        };
        let mut response = Response::new(Full::new(Bytes::from(format!("<{text}>"))));
        // A 2xx answer to CONNECT would end HTTP.
        *response.status_mut() = StatusCode::IM_A_TEAPOT;
        Ok::<_, Infallible>(response)
    });
    let server = hyper::server::conn::http1::Builder::new()
        .half_close(true)
        .keep_alive(false)
        .serve_connection(TokioIo::new(server), service);
    let exchange = async {
        client.write_all(raw.as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let (_ended, answer) = tokio::join!(server, exchange);
    match answer.split_once('<') {
        Some((_, text)) => text.split('>').next().unwrap().to_owned(),
        None => answer.lines().next().unwrap_or("closed").to_owned(),
    }
}

#[tokio::test]
async fn hostile_heads_are_refused_by_hyper_or_here() {
    const BAD: &str = "HTTP/1.1 400 Bad Request";
    let mut wrong = Vec::new();
    for (head, expected) in [
        // hyper drops the length, so it is read as chunked and framed anew towards the upstream.
        (
            "content-length: 3\r\ntransfer-encoding: chunked\r\n",
            "body=b\"abc\"",
        ),
        (
            "transfer-encoding: chunked\r\ncontent-length: 3\r\n",
            "body=b\"abc\"",
        ),
        ("transfer-encoding: chunked, chunked\r\n", "malformed_request"),
        ("transfer-encoding: gzip, chunked\r\n", "malformed_request"),
        ("transfer-encoding: chunked, gzip\r\n", BAD),
        ("transfer-encoding: xchunked\r\n", BAD),
        ("content-length: 3\r\ncontent-length: 4\r\n", BAD),
        ("content-length: +3\r\n", BAD),
        ("content-length: 3, 3\r\n", BAD),
        ("transfer-encoding : chunked\r\n", BAD),
        ("x-fold: a\r\n b\r\n", BAD),
        (" x-first: a\r\n", BAD),
        ("x-cr: a\rb\r\n", BAD),
        ("x-nul: a\0b\r\n", BAD),
        ("no colon\r\n", BAD),
        ("x-lf: a\ntransfer-encoding: chunked\n", "body=b\"abc\""),
        (
            "connection: host\r\ntransfer-encoding: chunked\r\n",
            "malformed_request",
        ),
    ] {
        let raw = format!("POST / HTTP/1.1\r\nhost: a\r\n{head}\r\n3\r\nabc\r\n0\r\n\r\n");
        let got = outcome(&raw).await;
        if got != expected {
            wrong.push(format!("{head:?}: {got} instead of {expected}"));
        }
    }
    assert_eq!(wrong, [""; 0]);
}

#[tokio::test]
async fn hostile_request_lines_are_refused_by_hyper_or_here() {
    const BAD: &str = "HTTP/1.1 400 Bad Request";
    let mut wrong = Vec::new();
    for (line, expected) in [
        ("CONNECT a:443 HTTP/1.1", "forbidden_form"),
        ("TRACE / HTTP/1.1", "forbidden_form"),
        ("GET /a b HTTP/1.1", BAD),
        ("GET / HTTP/1.2", BAD),
        ("GET  / HTTP/1.1", BAD),
        ("G(T / HTTP/1.1", BAD),
        ("GET /\u{1} HTTP/1.1", BAD),
    ] {
        let got = outcome(&format!("{line}\r\nhost: a\r\n\r\n")).await;
        if got != expected {
            wrong.push(format!("{line:?}: {got} instead of {expected}"));
        }
    }
    assert_eq!(wrong, [""; 0]);
}

#[tokio::test]
async fn broken_chunks_never_pass_as_a_body() {
    for chunks in [
        "3\nabc\r\n0\r\n\r\n",
        "+3\r\nabc\r\n0\r\n\r\n",
        "3\r\nabcX0\r\n\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        "3\r\nab",
    ] {
        let raw = format!("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{chunks}");
        let outcome = outcome(&raw).await;
        assert!(!outcome.starts_with("body="), "{chunks:?}: {outcome}");
    }
}
