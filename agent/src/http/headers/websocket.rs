//! The WebSocket handshake (RFC 6455 section 4): the only upgrade that is passed.
//!
//! Pure. Both halves are checked: a request that is none would open a blind tunnel, and so would a 101 that
//! answers something else.

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT,
    SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
    TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::{Method, StatusCode, Version, response};

use crate::policy::DenialReason;

use super::{Form, has_token, tokens};

/// RFC 6455 section 1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What the upstream's answer has to fit.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Handshake {
    accept: String,
    protocols: Vec<Box<[u8]>>,
    extensions: bool,
}

/// An answer with status 101 that must not be passed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BadSwitch {
    /// The request asked for no upgrade.
    #[error("the upstream switched protocols (101) without being asked")]
    Unasked,
    /// Another protocol than the one asked for, or no proof that the key was read.
    #[error("the upstream's 101 is no valid WebSocket answer ({0} is wrong)")]
    Invalid(&'static str),
}

/// Checks a request that has an `Upgrade` field.
pub(super) fn request(parts: &Parts) -> Result<Handshake, DenialReason> {
    let headers = &parts.headers;
    let valid = parts.method == Method::GET
        && parts.version == Version::HTTP_11
        && single(headers, &UPGRADE).is_some_and(|value| is(value, b"websocket"))
        && headers
            .get_all(CONNECTION)
            .iter()
            .any(|value| has_token(value, b"upgrade"))
        && single(headers, &SEC_WEBSOCKET_VERSION).is_some_and(|value| is(value, b"13"))
        && !headers.contains_key(TRANSFER_ENCODING)
        && headers.get(CONTENT_LENGTH).is_none_or(|length| length == "0");
    let key = single(headers, &SEC_WEBSOCKET_KEY).filter(|key| is_key(key.as_bytes()));
    match key {
        Some(key) if valid => Ok(Handshake {
            accept: accept(key.as_bytes()),
            protocols: headers
                .get_all(SEC_WEBSOCKET_PROTOCOL)
                .iter()
                .flat_map(tokens)
                .map(Into::into)
                .collect(),
            extensions: headers.contains_key(SEC_WEBSOCKET_EXTENSIONS),
        }),
        Some(_) | None => Err(DenialReason::ForbiddenForm),
    }
}

/// Says whether a response may be passed as far as switching protocols goes; any status but 101 may.
///
/// # Errors
/// See [`BadSwitch`].
pub fn check_switch(form: &Form, parts: &response::Parts) -> Result<(), BadSwitch> {
    if parts.status != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(());
    }
    let Form::WebSocket(asked) = form else {
        return Err(BadSwitch::Unasked);
    };
    let headers = &parts.headers;
    if !single(headers, &UPGRADE).is_some_and(|value| is(value, b"websocket")) {
        return Err(BadSwitch::Invalid("upgrade"));
    }
    if !headers
        .get_all(CONNECTION)
        .iter()
        .any(|value| has_token(value, b"upgrade"))
    {
        return Err(BadSwitch::Invalid("connection"));
    }
    if single(headers, &SEC_WEBSOCKET_ACCEPT).is_none_or(|value| value.as_bytes() != asked.accept.as_bytes())
    {
        return Err(BadSwitch::Invalid("sec-websocket-accept"));
    }
    if !asked.extensions && headers.contains_key(SEC_WEBSOCKET_EXTENSIONS) {
        return Err(BadSwitch::Invalid("sec-websocket-extensions"));
    }
    let protocol_fits = !headers.contains_key(SEC_WEBSOCKET_PROTOCOL)
        || single(headers, &SEC_WEBSOCKET_PROTOCOL)
            .is_some_and(|chosen| asked.protocols.iter().any(|one| **one == *chosen.as_bytes()));
    if protocol_fits {
        Ok(())
    } else {
        Err(BadSwitch::Invalid("sec-websocket-protocol"))
    }
}

/// Puts the two hop-by-hop fields of the handshake back in their plain form.
pub(super) fn set_upgrade(headers: &mut HeaderMap) {
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
}

/// The value of a field that is there exactly once.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

fn is(value: &HeaderValue, word: &[u8]) -> bool {
    value.as_bytes().eq_ignore_ascii_case(word)
}

/// 16 bytes in base64.
fn is_key(key: &[u8]) -> bool {
    let mut bytes = [0; 18];
    key.len() == 24 && STANDARD.decode_slice(key, &mut bytes) == Ok(16)
}

/// RFC 6455 section 4.2.2; SHA-1 as the protocol wants it, for no secret.
fn accept(key: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &[key, GUID].concat());
    STANDARD.encode(digest)
}
