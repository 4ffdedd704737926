//! SNI, Host, :authority and the dialled port must agree.
//!
//! Pure. A request can name its host in three places and its port in two; a proxy that believes one and
//! forwards another sends a credential astray. Here they must all say the same, and what goes out is written
//! anew from the one answer.

#[cfg(test)]
mod tests;

use http::header::HOST;
use http::request::Parts;
use http::uri::{PathAndQuery, Uri};
use http::{HeaderValue, Version};

use crate::addr::{Authority, HostName, HostNameError};
use crate::policy::{DenialReason, Scheme};

/// The port that a name without one means (RFC 9110 section 4.2).
#[must_use]
pub fn default_port(scheme: Scheme) -> u16 {
    match scheme {
        Scheme::Http => 80,
        Scheme::Https => 443,
    }
}

/// Finds the one host and port that a request is for, and rewrites it to origin-form with exactly one
/// canonical `Host`.
///
/// Case and one trailing dot don't count. `sni` is the ClientHello's name (`None` on plain HTTP), `port` the
/// one that the client dialled.
///
/// # Errors
/// [`DenialReason::NoName`] if nothing names a host, or only an address does;
/// [`DenialReason::NameMismatch`] if the places disagree; [`DenialReason::MalformedRequest`] for two `Host`
/// fields, user information, or a broken name or port.
pub fn settle(
    parts: &mut Parts,
    scheme: Scheme,
    sni: Option<&HostName>,
    port: u16,
) -> Result<Authority, DenialReason> {
    let default = default_port(scheme);
    let in_target = in_target(&parts.uri, scheme, parts.version)?
        .map(|text| parse(text, default))
        .transpose()?;
    let in_header = in_header(parts)?.map(|text| parse(text, default)).transpose()?;
    // RFC 9112 section 3.2: Host is required, beside an absolute target too.
    if in_header.is_none() && parts.version < Version::HTTP_2 {
        return Err(DenialReason::NoName);
    }
    let authority = match (in_target, in_header) {
        (Some(target), Some(header)) if target != header => return Err(DenialReason::NameMismatch),
        (Some(one), _) | (None, Some(one)) => one,
        (None, None) => return Err(DenialReason::NoName),
    };
    let name_agrees = match (scheme, sni) {
        (Scheme::Http, _) => true,
        (Scheme::Https, Some(sni)) => *sni == authority.host,
        (Scheme::Https, None) => return Err(DenialReason::NoName),
    };
    if !name_agrees || authority.port != port {
        return Err(DenialReason::NameMismatch);
    }
    rewrite(parts, &authority, scheme)?;
    Ok(authority)
}

/// Gives the request the form that HTTP/2 upstreams want: the authority in the target, no `Host`.
///
/// # Errors
/// [`DenialReason::MalformedRequest`] if the target is no path.
pub fn to_http2(parts: &mut Parts, authority: &Authority, scheme: Scheme) -> Result<(), DenialReason> {
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    uri.scheme = Some(match scheme {
        Scheme::Http => http::uri::Scheme::HTTP,
        Scheme::Https => http::uri::Scheme::HTTPS,
    });
    let text = field(authority, scheme);
    uri.authority = Some(text.parse().map_err(|_invalid| DenialReason::MalformedRequest)?);
    parts.uri = Uri::from_parts(uri).map_err(|_invalid| DenialReason::MalformedRequest)?;
    parts.headers.remove(HOST);
    Ok(())
}

/// The authority of an absolute-form target or of :authority.
fn in_target(uri: &Uri, scheme: Scheme, version: Version) -> Result<Option<&str>, DenialReason> {
    let Some(authority) = uri.authority() else {
        return Ok(None);
    };
    match (uri.scheme_str(), scheme) {
        (Some("http"), Scheme::Http) | (Some("https"), Scheme::Https) => {}
        // In HTTP/1 an authority alone is the target of CONNECT, which is refused elsewhere.
        (None, _) if version >= Version::HTTP_2 => {}
        (Some("http" | "https"), _) => return Err(DenialReason::NameMismatch),
        (Some(_) | None, _) => return Err(DenialReason::MalformedRequest),
    }
    Ok(Some(authority.as_str()))
}

fn in_header(parts: &Parts) -> Result<Option<&str>, DenialReason> {
    let mut values = parts.headers.get_all(HOST).iter();
    let Some(first) = values.next() else {
        return Ok(None);
    };
    // Two are one too many even when they agree: the next parser may take the other.
    if values.next().is_some() {
        return Err(DenialReason::MalformedRequest);
    }
    first
        .to_str()
        .map(Some)
        .map_err(|_not_ascii| DenialReason::MalformedRequest)
}

/// Reads `host` or `host:port`.
fn parse(text: &str, default_port: u16) -> Result<Authority, DenialReason> {
    if text.contains('@') {
        return Err(DenialReason::MalformedRequest);
    }
    if text.is_empty() || text.starts_with('[') {
        return Err(DenialReason::NoName);
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, parse_port(port).ok_or(DenialReason::MalformedRequest)?),
        None => (text, default_port),
    };
    match HostName::parse(host) {
        Ok(host) => Ok(Authority::new(host, port)),
        Err(HostNameError::IpAddress) => Err(DenialReason::NoName),
        Err(HostNameError::Empty | HostNameError::TooLong | HostNameError::Label) => {
            Err(DenialReason::MalformedRequest)
        }
    }
}

/// Digits alone (`u16::from_str` takes a sign too), no leading zero, not zero.
fn parse_port(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    if digits { text.parse().ok() } else { None }
}

fn rewrite(parts: &mut Parts, authority: &Authority, scheme: Scheme) -> Result<(), DenialReason> {
    let host =
        HeaderValue::try_from(field(authority, scheme)).map_err(|_invalid| DenialReason::MalformedRequest)?;
    parts.headers.insert(HOST, host);
    if parts.uri.authority().is_some() {
        let path = parts.uri.path_and_query().cloned();
        parts.uri = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    }
    Ok(())
}

/// As `Host` has it: the port only where it is not the scheme's own.
fn field(authority: &Authority, scheme: Scheme) -> String {
    if authority.port == default_port(scheme) {
        authority.host.as_str().to_owned()
    } else {
        authority.to_string()
    }
}
