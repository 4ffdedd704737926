//! Headers that never pass.
//!
//! Pure. The order that a request needs: [`form`] (may it pass at all), `authority::settle`,
//! [`clean_request`], then policy, then the credential: what policy matches is then what is sent, since a
//! header that `Connection` names is gone before a rule looks.
//!
//! # What hyper 1.12 does with requests that two parsers read differently
//!
//! In HTTP/1 `framing` refuses all but the last two rows before hyper reads a byte of them; [`form`] asks again, for
//! HTTP/2 too. A test here sends each to hyper's own server; if an upgrade changes an answer, the test says so.
//!
//! | request | hyper | here |
//! |---|---|---|
//! | blank before the colon, obs-fold, NUL or bare CR in a header | 400 | |
//! | Content-Length twice and different, signed, or in a list | 400 | |
//! | Transfer-Encoding that does not end in chunked, or in HTTP/1.0 | 400 | |
//! | Content-Length beside Transfer-Encoding | drops the length, reads as chunked (RFC 9112 section 6.3) | `framing` refuses |
//! | `chunked` twice, or after another coding | read as chunked | `framing` and [`form`] refuse |
//! | a line ended by a bare LF (RFC 9112 section 2.2 permits it) | read | `framing` refuses |
//! | CONNECT, TRACE | passed on | [`form`] refuses |
//! | Host twice | passed on | `authority::settle` refuses |
//!
//! Nothing is forwarded as it came: hyper's client writes the head anew and frames the body itself, so a
//! difference that hyper reads away never reaches the upstream.
//!
//! # Left on
//!
//! `Forwarded`, `X-Forwarded-*` and `Via` stay as the client wrote them: the agent is transparent and adds
//! none, and an upstream that trusts them from the open network trusts every other client too.

pub mod websocket;

#[cfg(test)]
mod tests;

use http::header::{
    ALT_SVC, AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_TYPE, COOKIE, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, WWW_AUTHENTICATE,
};
use http::request::Parts;
use http::{Method, Version};

use super::framing::HeadLimits;
use crate::policy::{DenialReason, spelling};

use websocket::Handshake;

/// Whether an HTTP/2 head is within the limits, measured as RFC 9113 section 6.5.2 does.
///
/// # Errors
/// [`DenialReason::HeadTooLarge`].
pub fn measure(parts: &Parts, limits: HeadLimits) -> Result<(), DenialReason> {
    const OVERHEAD: usize = 32;
    let fields = parts.headers.iter();
    let bytes: usize = fields
        .map(|(name, value)| name.as_str().len() + value.len() + OVERHEAD)
        .sum();
    let target = parts
        .uri
        .path_and_query()
        .map_or(0, |target| target.as_str().len());
    if parts.headers.len() > limits.fields || bytes + target > limits.bytes {
        return Err(DenialReason::HeadTooLarge);
    }
    Ok(())
}

/// Of one hop only (RFC 9110 section 7.6.1, and what came before it). Transfer-Encoding is here too: hyper
/// frames each side anew.
static HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("http2-settings"),
    PROXY_AUTHENTICATE,
];

/// Of a request's own beside those.
static REQUEST_ONLY: [HeaderName; 2] = [PROXY_AUTHORIZATION, EXPECT];

/// Fields that `Connection` must not name (RFC 9110 section 7.6.1: never those meant for all recipients):
/// a proxy that obeys would change whom the request is for, how long it is or who sends it.
static NEVER_IN_CONNECTION: [HeaderName; 8] = [
    HOST,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    CONTENT_ENCODING,
    CACHE_CONTROL,
    AUTHORIZATION,
    COOKIE,
    TRAILER,
];

/// Headers by which frameworks let a client change the method or target that a rule has just allowed.
///
/// `-method-override`, `-http-method`, `-method`: Rails/Rack, Symfony, Spring, ASP.NET, express
/// `method-override`, Google's APIs. `x-original-url`, `x-rewrite-url`: Symfony/Zend on IIS
/// (CVE-2018-14773). The rest are honoured by some reverse proxies and forward-auth setups. In every spelling.
const OVERRIDES: [&str; 13] = [
    "x-http-method-override",
    "x-http-method",
    "x-method-override",
    "x-method",
    "x-original-url",
    "x-original-uri",
    "x-original-method",
    "x-original-host",
    "x-rewrite-url",
    "x-rewrite-uri",
    "x-http-host-override",
    "x-host",
    "x-http-path-override",
];

/// Fields that no trailer may carry: routing, framing, authentication (RFC 9110 section 6.5.1).
static NEVER_IN_TRAILERS: [HeaderName; 15] = [
    AUTHORIZATION,
    PROXY_AUTHORIZATION,
    PROXY_AUTHENTICATE,
    WWW_AUTHENTICATE,
    COOKIE,
    SET_COOKIE,
    HOST,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    CONTENT_ENCODING,
    CONTENT_RANGE,
    CACHE_CONTROL,
    EXPECT,
    TRAILER,
    ALT_SVC,
];

/// How a request is to be passed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Form {
    /// As request and response.
    Plain,
    /// As a WebSocket, if the upstream agrees.
    WebSocket(Handshake),
}

/// Says whether a request has a form that is passed at all. To be asked first, on the request as it came.
///
/// # Errors
/// [`DenialReason::ForbiddenForm`] for CONNECT (extended too), TRACE and any upgrade but a valid WebSocket
/// one; [`DenialReason::MalformedRequest`] for framing that two parsers could read differently and for a
/// `Connection` that names end-to-end fields.
pub fn form(parts: &Parts) -> Result<Form, DenialReason> {
    let method = &parts.method;
    // PRI is HTTP/2's preface and TRACK an old TRACE.
    if method == Method::CONNECT || method == Method::TRACE || matches!(method.as_str(), "PRI" | "TRACK") {
        return Err(DenialReason::ForbiddenForm);
    }
    check_framing(parts)?;
    for option in connection_options(&parts.headers) {
        if NEVER_IN_CONNECTION
            .iter()
            .any(|name| option.eq_ignore_ascii_case(name.as_str().as_bytes()))
        {
            return Err(DenialReason::MalformedRequest);
        }
    }
    if parts.headers.contains_key(UPGRADE) {
        return websocket::request(parts).map(Form::WebSocket);
    }
    Ok(Form::Plain)
}

/// At most one length, at most one framing, and none of the connection's own in HTTP/2.
fn check_framing(parts: &Parts) -> Result<(), DenialReason> {
    let headers = &parts.headers;
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let length = lengths.next();
    let length_is_clear = lengths.next().is_none() && length.is_none_or(is_number);
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let coding = codings.next();
    let coding_is_clear = coding.is_none_or(|coding| {
        parts.version == Version::HTTP_11
            && codings.next().is_none()
            && length.is_none()
            && coding.as_bytes().eq_ignore_ascii_case(b"chunked")
    });
    // RFC 9113 section 8.2.2: a request with these is malformed.
    let hop_is_clear = parts.version < Version::HTTP_2
        || !(headers.contains_key(CONNECTION) || headers.contains_key(UPGRADE));
    if length_is_clear && coding_is_clear && hop_is_clear {
        Ok(())
    } else {
        Err(DenialReason::MalformedRequest)
    }
}

fn is_number(value: &HeaderValue) -> bool {
    let bytes = value.as_bytes();
    (1..=19).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_digit)
}

/// Takes off what is of one hop, what rewrites method or target, and `Expect` (the agent itself has the
/// client send its body, RFC 9110 section 10.1.1). Of `TE` only `trailers` stays, which gRPC needs.
///
/// To be called before policy looks at the headers.
pub fn clean_request(headers: &mut HeaderMap, form: &Form) {
    let trailers = headers
        .get_all(TE)
        .iter()
        .any(|value| has_token(value, b"trailers"));
    remove_hop_by_hop(headers);
    remove(headers, |name| {
        is_override(name.as_str()) || REQUEST_ONLY.contains(name)
    });
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if matches!(form, Form::WebSocket(_)) {
        websocket::set_upgrade(headers);
    }
}

/// Takes off what is of one hop, `Alt-Svc` (it would lead clients past the agent) and, where a credential
/// was put on, cookies: a session that the credential opened belongs to the agent.
pub fn clean_response(headers: &mut HeaderMap, form: &Form, credentialed: bool) {
    let switched = matches!(form, Form::WebSocket(_)) && headers.contains_key(UPGRADE);
    remove_hop_by_hop(headers);
    remove(headers, |name| {
        *name == ALT_SVC || (credentialed && (*name == SET_COOKIE || name.as_str() == "set-cookie2"))
    });
    if switched {
        websocket::set_upgrade(headers);
    }
}

/// Takes off what no trailer may carry; for both directions.
pub fn clean_trailers(trailers: &mut HeaderMap) {
    remove_hop_by_hop(trailers);
    remove(trailers, |name| {
        let never = |listed: &HeaderName| spelling::is_one_header(name.as_str(), listed.as_str());
        is_override(name.as_str()) || HOP_BY_HOP.iter().chain(&NEVER_IN_TRAILERS).any(never)
    });
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = connection_options(headers)
            .filter_map(|option| HeaderName::from_bytes(option).ok())
            .filter(|name| !NEVER_IN_CONNECTION.contains(name))
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    remove(headers, |name| HOP_BY_HOP.contains(name));
}

/// A message has few fields: to look at each costs less than to look for all that must not be there.
fn remove(headers: &mut HeaderMap, unwanted: impl Fn(&HeaderName) -> bool) {
    let found: Vec<HeaderName> = headers.keys().filter(|name| unwanted(name)).cloned().collect();
    for name in found {
        headers.remove(name);
    }
}

fn is_override(name: &str) -> bool {
    // Nearly every header is passed by its first letter.
    name.starts_with('x')
        && OVERRIDES
            .iter()
            .any(|listed| spelling::is_one_header(listed, name))
}

/// The members of all `Connection` fields.
fn connection_options(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    headers.get_all(CONNECTION).iter().flat_map(tokens)
}

/// The members of a comma-separated list, without blanks; empty ones don't count (RFC 9110 section 5.6.1).
fn tokens(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value
        .as_bytes()
        .split(|byte| *byte == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|token| !token.is_empty())
}

fn has_token(value: &HeaderValue, token: &[u8]) -> bool {
    tokens(value).any(|one| one.eq_ignore_ascii_case(token))
}
