//! Tests of `http::response`.

use http::Version;
use http_body_util::BodyExt;

use super::*;

const HTTP: Client = Client {
    grpc: false,
    http1: true,
    head: false,
};
const GRPC: Client = Client {
    grpc: true,
    http1: false,
    head: false,
};

fn denial(reason: DenialReason) -> Refusal {
    Refusal::Denied(Denial {
        reason,
        rule: Some("charges \"a\"\n100% é".into()),
    })
}

async fn body(response: Response<Full<Bytes>>) -> serde_json::Value {
    serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap()
}

#[tokio::test]
async fn a_denial_is_a_problem_that_names_rule_reason_and_record() {
    let response = refuse(&denial(DenialReason::CallNotAllowed), "0193-id", HTTP);
    assert_eq!(response.status(), 403);
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    assert_eq!(response.headers()[REQUEST_ID], "0193-id");
    assert_eq!(response.headers()["cache-control"], "no-store");
    let problem = body(response).await;
    assert_eq!(problem["status"], 403);
    assert_eq!(problem["reason"], "call_not_allowed");
    assert_eq!(problem["type"], "urn:callgate:denied:call_not_allowed");
    assert_eq!(problem["request_id"], "0193-id");
    assert_eq!(problem["rule"], "charges \"a\"\n100% é");
}

#[test]
fn a_denial_an_upstream_fault_and_a_lack_of_ours_are_told_apart() {
    for (refusal, status, grpc_status) in [
        (denial(DenialReason::NameMismatch), 421, "7"),
        (denial(DenialReason::MalformedRequest), 400, "7"),
        (denial(DenialReason::Limit), 429, "8"),
        (Refusal::Upstream(UpstreamFault::Connect), 502, "14"),
        (Refusal::Upstream(UpstreamFault::Certificate), 502, "14"),
        (Refusal::Upstream(UpstreamFault::Timeout), 504, "4"),
        (Refusal::Unavailable(Unavailable::Audit), 503, "14"),
        (Refusal::Unavailable(Unavailable::Internal), 500, "13"),
    ] {
        assert_eq!(refuse(&refusal, "id", HTTP).status(), status);
        let grpc = refuse(&refusal, "id", GRPC);
        assert_eq!(grpc.status(), 200);
        assert_eq!(grpc.headers()["grpc-status"], grpc_status);
        assert_eq!(grpc.headers()["content-type"], "application/grpc");
    }
}

#[test]
fn a_grpc_message_is_one_line_of_ascii() {
    let response = refuse(&denial(DenialReason::DenyRule), "id", GRPC);
    let message = response.headers()["grpc-message"].to_str().unwrap().to_owned();
    assert!(
        message.contains("rule charges \"a\"%0A100%25 %C3%A9, request id"),
        "{message}"
    );
}

#[test]
fn only_grpc_content_types_make_a_grpc_client() {
    for (kind, grpc) in [
        ("application/grpc", true),
        ("application/grpc+proto", true),
        ("Application/gRPC; x", true),
        ("application/grpc-web", false),
        ("application/json", false),
        ("", false),
    ] {
        let mut request = request::Request::new(()).into_parts().0;
        request.version = Version::HTTP_2;
        request
            .headers
            .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        assert_eq!(Client::of(&request), Client { grpc, ..GRPC }, "{kind}");
    }
}

#[tokio::test]
async fn a_head_is_answered_without_the_body_that_a_get_has() {
    let refusal = denial(DenialReason::DenyRule);
    let length = refuse(&refusal, "id", HTTP).into_body().size_hint().exact();
    let response = refuse(&refusal, "id", Client { head: true, ..HTTP });
    let said = response.headers()[CONTENT_LENGTH].to_str().unwrap().parse().ok();
    assert!(said > Some(0_u64) && said == length, "{said:?} {length:?}");
    assert!(response.into_body().is_end_stream());
}

/// What hyper writes to an HTTP/1 client that sends `requests`, which end with a `connection: close`.
async fn written(requests: &str, client: impl Fn(&request::Parts) -> Client) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let (mut ours, theirs) = tokio::io::duplex(65536);
    let refusal = denial(DenialReason::DenyRule);
    let service = hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| {
        let client = client(&request.into_parts().0);
        std::future::ready(Ok::<_, std::convert::Infallible>(refuse(&refusal, "id", client)))
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .serve_connection(hyper_util::rt::TokioIo::new(theirs), service);
    ours.write_all(requests.as_bytes()).await.unwrap();
    serving.await.unwrap();
    let mut text = String::new();
    ours.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn behind_a_head_an_http1_connection_carries_the_next_request() {
    let requests = "HEAD / HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let text = written(requests, Client::of).await;
    let heads: Vec<_> = text.splitn(3, "\r\n\r\n").collect();
    let [first, second, body] = heads[..] else {
        panic!("{text}");
    };
    let length = format!("content-length: {}", body.len());
    assert!(first.contains(&length) && second.contains(&length), "{text}");
    assert!(second.starts_with("HTTP/1.1 403"), "{text}");
    // A HEAD that was refused before it was read: hyper has read the GET in its place.
    let unread = Client { head: true, ..HTTP };
    let text = written("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", |_| {
        unread
    })
    .await;
    assert!(
        text.contains("content-length: 0\r\n") && text.ends_with("\r\n\r\n"),
        "{text}"
    );
}

#[test]
fn the_connection_closes_only_after_a_malformed_http1_request() {
    let malformed = denial(DenialReason::MalformedRequest);
    assert_eq!(refuse(&malformed, "id", HTTP).headers()["connection"], "close");
    assert!(
        !refuse(&malformed, "id", Client { http1: false, ..HTTP })
            .headers()
            .contains_key("connection")
    );
    assert!(
        !refuse(&denial(DenialReason::DenyRule), "id", HTTP)
            .headers()
            .contains_key("connection")
    );
}
