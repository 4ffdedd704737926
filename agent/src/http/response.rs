//! Refusals and errors in the client's own protocol, in fixed words.
//!
//! HTTP clients get `application/problem+json` (RFC 9457) with the request id that finds the record; gRPC
//! clients get what their library can read: HTTP 200 with `grpc-status` in the head ("trailers-only",
//! gRPC over HTTP/2). Nothing here is taken from the request but its id and the rule's name, so nothing of
//! the request, of the policy or of a secret can come back through it.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use http::{Method, Response, StatusCode, Version, request};
use http_body::Body as _;
use http_body_util::Full;

use crate::policy::{Denial, DenialReason};

/// Carries the request id on every answer that the agent itself gives.
pub const REQUEST_ID: &str = "x-callgate-request-id";

/// Why the agent itself answers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Refusal {
    /// Policy, or a check before it, said no.
    Denied(Denial),
    /// It may go out, but did not get through.
    Upstream(UpstreamFault),
    /// The agent can't do its part: the record, the credential or itself.
    Unavailable(Unavailable),
}

/// What went wrong on the way to the upstream.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum UpstreamFault {
    /// The name has no address.
    Resolve,
    /// No connection.
    Connect,
    /// The TLS handshake failed.
    Tls,
    /// The certificate does not prove the name.
    Certificate,
    /// The answer was no HTTP, broke off, or asked for something that is not passed.
    Protocol,
    /// It closed its HTTP/2 connection, or refused the stream, before it read the request.
    Unread,
    /// No connection or answer in time.
    Timeout,
}

/// What the agent lacks.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Unavailable {
    /// The audit record can't be written.
    Audit,
    /// The credential can't be had.
    Credential,
    /// The agent is stopping.
    Draining,
    /// A fault of the agent.
    Internal,
}

/// How the client reads an answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Client {
    /// It speaks gRPC.
    pub grpc: bool,
    /// HTTP/1, where an answer can close the connection.
    pub http1: bool,
    /// It asked by HEAD, to which no answer has a body (RFC 9110 section 9.3.2); one over HTTP/2 would be its error.
    pub head: bool,
}

impl Client {
    /// Told from the request's method, version and content type (`application/grpc`, `application/grpc+proto`, ...).
    #[must_use]
    pub fn of(request: &request::Parts) -> Self {
        let kind = request
            .headers
            .get(CONTENT_TYPE)
            .map(HeaderValue::as_bytes)
            .unwrap_or_default();
        let grpc = kind.split_at_checked(16).is_some_and(|(start, rest)| {
            start.eq_ignore_ascii_case(b"application/grpc") && matches!(rest, [] | [b'+' | b';' | b' ', ..])
        });
        Self {
            grpc,
            http1: request.version < Version::HTTP_2,
            head: request.method == Method::HEAD,
        }
    }
}

/// The fixed words and numbers of one refusal.
struct Wording {
    status: StatusCode,
    grpc_status: &'static str,
    kind: &'static str,
    code: &'static str,
    title: &'static str,
    detail: &'static str,
}

/// gRPC status codes (<https://grpc.github.io/grpc/core/md_doc_statuscodes.html>).
const DEADLINE_EXCEEDED: &str = "4";
const PERMISSION_DENIED: &str = "7";
const RESOURCE_EXHAUSTED: &str = "8";
const INTERNAL: &str = "13";
const UNAVAILABLE: &str = "14";

impl Refusal {
    /// The status of the answer to an HTTP client, for the record.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.wording().status
    }

    /// The stable word for records and clients.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.wording().code
    }

    fn rule(&self) -> Option<&str> {
        match self {
            Self::Denied(denial) => denial.rule.as_deref(),
            Self::Upstream(_) | Self::Unavailable(_) => None,
        }
    }

    fn wording(&self) -> Wording {
        match self {
            Self::Denied(denial) => denied(denial.reason),
            Self::Upstream(fault) => upstream(*fault),
            Self::Unavailable(lack) => unavailable(*lack),
        }
    }
}

fn denied(reason: DenialReason) -> Wording {
    let (status, detail) = match reason {
        DenialReason::NoOrigin
        | DenialReason::UnknownWorkload
        | DenialReason::NotThisWorkload
        | DenialReason::CallerNotAllowed => (
            StatusCode::FORBIDDEN,
            "The calling process is not one that may make this call.",
        ),
        DenialReason::HostNotAllowed => (
            StatusCode::FORBIDDEN,
            "No rule of this workload names this host and port.",
        ),
        DenialReason::CallNotAllowed => (
            StatusCode::FORBIDDEN,
            "Rules of this workload name this host, but none allows this call.",
        ),
        DenialReason::DenyRule => (
            StatusCode::FORBIDDEN,
            "A deny rule of this workload forbids this call.",
        ),
        DenialReason::AmbiguousPath => (
            StatusCode::FORBIDDEN,
            "The path could be read in several ways, so no rule can allow it.",
        ),
        DenialReason::NameMismatch => (
            StatusCode::MISDIRECTED_REQUEST,
            "The TLS server name, the request's host and the dialled port do not agree.",
        ),
        DenialReason::NoName => (
            StatusCode::BAD_REQUEST,
            "The request names no host (an address is not enough).",
        ),
        DenialReason::PrivateAddress => (
            StatusCode::FORBIDDEN,
            "The address is private, and the rule does not allow private addresses.",
        ),
        DenialReason::AddressNotOfName => (
            StatusCode::FORBIDDEN,
            "The dialled address is none of the host's, as the agent's resolvers know it.",
        ),
        DenialReason::PlainHttp => (
            StatusCode::FORBIDDEN,
            "No rule allows this host over plain HTTP; use https.",
        ),
        DenialReason::UnknownProtocol => (StatusCode::FORBIDDEN, "The connection is neither TLS nor HTTP."),
        DenialReason::ForbiddenForm => (
            StatusCode::FORBIDDEN,
            "This method or protocol upgrade is never passed on.",
        ),
        DenialReason::MalformedRequest => (StatusCode::BAD_REQUEST, "The request is not well-formed HTTP."),
        DenialReason::HeadTooLarge => (
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "The request line and headers are larger, or more, than the limits allow.",
        ),
        DenialReason::HeadTimeout => (
            StatusCode::REQUEST_TIMEOUT,
            "The request's headers did not come in whole in time.",
        ),
        DenialReason::Revoked => (
            StatusCode::FORBIDDEN,
            "The policy has changed and no longer allows this call.",
        ),
        DenialReason::Limit => (
            StatusCode::TOO_MANY_REQUESTS,
            "A limit of this workload was reached.",
        ),
    };
    let grpc_status = if reason == DenialReason::Limit {
        RESOURCE_EXHAUSTED
    } else {
        PERMISSION_DENIED
    };
    Wording {
        status,
        grpc_status,
        kind: "denied",
        code: reason.code(),
        title: "Refused by callgate",
        detail,
    }
}

fn upstream(fault: UpstreamFault) -> Wording {
    let gateway = (StatusCode::BAD_GATEWAY, UNAVAILABLE);
    let ((status, grpc_status), code, detail) = match fault {
        UpstreamFault::Resolve => (gateway, "upstream_resolve", "The host's name has no address."),
        UpstreamFault::Connect => (gateway, "upstream_connect", "The host could not be connected to."),
        UpstreamFault::Tls => (gateway, "upstream_tls", "The TLS handshake with the host failed."),
        UpstreamFault::Certificate => (
            gateway,
            "upstream_certificate",
            "The host's certificate could not be verified.",
        ),
        UpstreamFault::Protocol => (
            gateway,
            "upstream_protocol",
            "The host's answer broke the protocol.",
        ),
        UpstreamFault::Unread => (
            gateway,
            "upstream_unread",
            "The host did not read the request; it can be sent again.",
        ),
        UpstreamFault::Timeout => (
            (StatusCode::GATEWAY_TIMEOUT, DEADLINE_EXCEEDED),
            "upstream_timeout",
            "The host did not answer in time.",
        ),
    };
    let title = "The call was allowed, but the host could not be reached";
    Wording {
        status,
        grpc_status,
        kind: "upstream",
        code,
        title,
        detail,
    }
}

fn unavailable(lack: Unavailable) -> Wording {
    let wait = (StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE);
    let ((status, grpc_status), code, detail) = match lack {
        Unavailable::Audit => (
            wait,
            "audit_unavailable",
            "The call can't be recorded, so it is not made.",
        ),
        Unavailable::Credential => (
            wait,
            "credential_unavailable",
            "The credential for this call can't be had at the moment.",
        ),
        Unavailable::Draining => (wait, "draining", "The agent is stopping; try again."),
        Unavailable::Internal => (
            (StatusCode::INTERNAL_SERVER_ERROR, INTERNAL),
            "internal",
            "The agent has a fault.",
        ),
    };
    Wording {
        status,
        grpc_status,
        kind: "unavailable",
        code,
        title: "callgate can't make this call",
        detail,
    }
}

/// The answer to a client whose call is not made. `request_id` finds the record.
#[must_use]
pub fn refuse(refusal: &Refusal, request_id: &str, client: Client) -> Response<Full<Bytes>> {
    let wording = refusal.wording();
    let mut response = if client.grpc {
        grpc(&wording, refusal.rule(), request_id)
    } else {
        problem(&wording, refusal.rule(), request_id)
    };
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(id) = HeaderValue::from_str(request_id) {
        headers.insert(REQUEST_ID, id);
    }
    // After a malformed request nobody knows where the next one begins.
    let lost = matches!(
        wording.status,
        StatusCode::BAD_REQUEST | StatusCode::REQUEST_TIMEOUT | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
    );
    if client.http1 && lost {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if client.head {
        without_body(response)
    } else {
        response
    }
}

/// As it would have been with a body, whose length is told all the same.
fn without_body(mut response: Response<Full<Bytes>>) -> Response<Full<Bytes>> {
    if let Some(length) = response.body().size_hint().exact() {
        response.headers_mut().insert(CONTENT_LENGTH, length.into());
    }
    response.map(|_body| Full::default())
}

fn problem(wording: &Wording, rule: Option<&str>, request_id: &str) -> Response<Full<Bytes>> {
    let mut problem = serde_json::json!({
        "type": format!("urn:callgate:{}:{}", wording.kind, wording.code),
        "title": wording.title,
        "status": wording.status.as_u16(),
        "detail": wording.detail,
        "reason": wording.code,
        "request_id": request_id,
    });
    if let Some(rule) = rule {
        problem["rule"] = rule.into();
    }
    let mut response = Response::new(Full::from(format!("{problem}\n")));
    *response.status_mut() = wording.status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    response
}

fn grpc(wording: &Wording, rule: Option<&str>, request_id: &str) -> Response<Full<Bytes>> {
    let rule = rule.map(|rule| format!("rule {rule}, ")).unwrap_or_default();
    let Wording {
        title, detail, code, ..
    } = wording;
    let message = format!("{title}: {detail} ({code}, {rule}request {request_id})");
    let message = percent_encoding::utf8_percent_encode(&message, GRPC_MESSAGE).to_string();
    let mut response = Response::new(Full::default());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from_static(wording.grpc_status));
    if let Ok(message) = HeaderValue::from_str(&message) {
        headers.insert("grpc-message", message);
    }
    response
}

/// All but blank to `~`, and `%` itself (gRPC over HTTP/2, "Percent-Encoded").
const GRPC_MESSAGE: &percent_encoding::AsciiSet = &percent_encoding::CONTROLS.add(b'%');

#[cfg(test)]
mod tests;
