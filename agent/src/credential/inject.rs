//! Takes the client's credentials off and puts ours on; the only caller of expose().

mod strip;

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use zeroize::{Zeroize as _, Zeroizing};

use super::secret::Secret;
use super::spec::CredentialScheme;
use super::store::{State, Store};
use crate::addr::Authority;
use crate::policy::{ClientAuth, CredentialName, Permit, Scheme};

pub use strip::is_client_credential;

/// What went on, for the record.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Injected {
    /// The credential's name.
    pub name: CredentialName,
    /// Which of its values.
    pub version: Arc<str>,
    /// The header that it is in, if it is in one: the client must not send that behind its body either.
    pub header: Option<HeaderName>,
}

/// Why a request can't have its credential, and so can't go out. No text holds the value.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    /// The rule names one that is not configured.
    #[error("no credential `{name}` is configured")]
    Unknown {
        /// The name.
        name: CredentialName,
    },
    /// Its source gives none.
    #[error("credential `{name}` has no value: {reason}")]
    Unavailable {
        /// The name.
        name: CredentialName,
        /// What the source says.
        reason: Arc<str>,
    },
    /// The credential's own list does not have this place.
    #[error(
        "credential `{name}` may not be sent to {authority}{path}: it is not in the credential's `hosts`"
    )]
    Elsewhere {
        /// The name.
        name: CredentialName,
        /// Where the request goes.
        authority: Authority,
        /// The request's path.
        path: String,
    },
    /// The request names another place than its permit.
    #[error("the request is not for {authority}, which it has leave for")]
    NotPermitted {
        /// What the permit is for.
        authority: Authority,
    },
    /// The value and the scheme don't go together.
    #[error("the credential can't be put on as its scheme says: {what}")]
    Scheme {
        /// What is wrong, without the value.
        what: &'static str,
    },
    /// With the credential the request's target gets too long.
    #[error("the request's path and query can't be written with the credential in it")]
    Target,
}

impl Error {
    /// The stable word for records and refusals.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unknown { .. } => "credential_unknown",
            Self::Unavailable { .. } => "credential_unavailable",
            Self::Elsewhere { .. } => "credential_elsewhere",
            Self::NotPermitted { .. } => "credential_not_permitted",
            Self::Scheme { .. } => "credential_scheme",
            Self::Target => "credential_target",
        }
    }
}

/// Makes a request ready to leave: without the client's credentials, unless its rule passes them, and with ours
/// if its rule names one. After an error the request must not be sent.
///
/// # Errors
/// If the credential has no value, or may not go where the request goes.
pub fn inject(permit: &Permit, store: &Store, parts: &mut Parts) -> Result<Option<Injected>, Error> {
    let leave = Leave {
        authority: permit.authority(),
        scheme: permit.scheme(),
        client_auth: permit.client_auth(),
        credential: permit.credential(),
    };
    apply(&leave, store, parts)
}

/// What injection asks of a permit.
struct Leave<'a> {
    authority: &'a Authority,
    scheme: Scheme,
    client_auth: ClientAuth,
    credential: Option<&'a CredentialName>,
}

fn apply(leave: &Leave<'_>, store: &Store, parts: &mut Parts) -> Result<Option<Injected>, Error> {
    check_target(leave, &parts.uri)?;
    if leave.client_auth == ClientAuth::Strip {
        strip::headers(&mut parts.headers);
        strip::query(&mut parts.uri)?;
    }
    let Some(name) = leave.credential else {
        return Ok(None);
    };
    let entry = store.get(name)?;
    let path = parts.uri.path();
    if !entry.spec.covers(leave.authority, path) {
        return Err(Error::Elsewhere {
            name: name.clone(),
            authority: leave.authority.clone(),
            path: path.to_owned(),
        });
    }
    match &entry.state {
        State::Ready { prepared, version } => {
            prepared.put_on(parts)?;
            Ok(Some(Injected {
                name: name.clone(),
                version: Arc::clone(version),
                header: prepared.header().cloned(),
            }))
        }
        State::Unavailable { reason } => Err(Error::Unavailable {
            name: name.clone(),
            reason: Arc::clone(reason),
        }),
    }
}

/// A request in absolute form must name what it has leave for. (In origin form the place is the connection's.)
fn check_target(leave: &Leave<'_>, uri: &Uri) -> Result<(), Error> {
    let default_port = match leave.scheme {
        Scheme::Http => 80,
        Scheme::Https => 443,
    };
    let host = uri
        .host()
        .is_none_or(|host| host.eq_ignore_ascii_case(leave.authority.host.as_str()));
    let port = uri
        .authority()
        .is_none_or(|authority| authority.port_u16().unwrap_or(default_port) == leave.authority.port);
    let scheme = uri.scheme().is_none_or(|scheme| match leave.scheme {
        Scheme::Http => *scheme == http::uri::Scheme::HTTP,
        Scheme::Https => *scheme == http::uri::Scheme::HTTPS,
    });
    if host && port && scheme {
        return Ok(());
    }
    Err(Error::NotPermitted {
        authority: leave.authority.clone(),
    })
}

/// A credential in the form in which it goes on a request, made once per value. Its bytes are wiped when the last
/// request that carries it is gone; what the HTTP and TLS layers copy into their own buffers is not in our hands.
#[derive(Clone)]
pub(super) enum Prepared {
    Header(HeaderName, HeaderValue),
    Query {
        name: Arc<str>,
        pair: Arc<Zeroizing<String>>,
    },
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Prepared(..)")
    }
}

/// Puts a value into its scheme's form.
pub(super) fn prepare(scheme: &CredentialScheme, secret: &Secret) -> Result<Prepared, Error> {
    match scheme {
        CredentialScheme::Bearer => header(AUTHORIZATION, &["Bearer ", secret.expose()]),
        CredentialScheme::Basic { username } => {
            if username.contains(':') || username.chars().any(char::is_control) {
                let what = "a basic user name can't have a colon or control character (RFC 7617)";
                return Err(Error::Scheme { what });
            }
            let pair = joined(&[username, ":", secret.expose()]);
            let mut coded = Zeroizing::new(String::with_capacity(pair.len().div_ceil(3) * 4));
            STANDARD.encode_string(pair.as_bytes(), &mut coded);
            header(AUTHORIZATION, &["Basic ", &coded])
        }
        CredentialScheme::Header { name, prefix } => {
            header(name.clone(), &[prefix.as_deref().unwrap_or(""), secret.expose()])
        }
        CredentialScheme::Query { name } => Ok(Prepared::Query {
            name: name.as_str().into(),
            pair: Arc::new(pair(name, secret.expose())),
        }),
    }
}

/// Joins without leaving a copy behind in memory that was outgrown.
fn joined(parts: &[&str]) -> Zeroizing<String> {
    let mut out = Zeroizing::new(String::with_capacity(parts.iter().map(|part| part.len()).sum()));
    parts.iter().for_each(|part| out.push_str(part));
    out
}

/// The unreserved characters of RFC 3986 section 2.3 stay, all else is encoded.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

fn pair(name: &str, value: &str) -> Zeroizing<String> {
    let mut out = Zeroizing::new(String::with_capacity(3 * (name.len() + value.len()) + 1));
    out.extend(utf8_percent_encode(name, QUERY));
    out.push('=');
    out.extend(utf8_percent_encode(value, QUERY));
    out
}

/// Wipes a header value's bytes when its last clone is gone.
struct Wiped(Zeroizing<String>);

impl AsRef<[u8]> for Wiped {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

fn header(name: HeaderName, parts: &[&str]) -> Result<Prepared, Error> {
    let bytes = Bytes::from_owner(Wiped(joined(parts)));
    let mut value = HeaderValue::from_maybe_shared(bytes).map_err(|_the_value_is_in_it| Error::Scheme {
        what: "the header's prefix has a character that no header can carry",
    })?;
    // Never indexed by HPACK (RFC 7541 section 7.1.3), never shown by Debug.
    value.set_sensitive(true);
    Ok(Prepared::Header(name, value))
}

impl Prepared {
    fn header(&self) -> Option<&HeaderName> {
        match self {
            Self::Header(name, _) => Some(name),
            Self::Query { .. } => None,
        }
    }

    fn put_on(&self, parts: &mut Parts) -> Result<(), Error> {
        match self {
            Self::Header(name, value) => {
                // Of what the client sent under this name nothing may be left, in no spelling.
                strip::header(&mut parts.headers, name);
                parts.headers.insert(name.clone(), value.clone());
                Ok(())
            }
            Self::Query { name, pair } => {
                strip::parameter(&mut parts.uri, name)?;
                let mut target = String::from(parts.uri.path());
                target.reserve_exact(parts.uri.query().map_or(0, str::len) + pair.len() + 2);
                target.push('?');
                if let Some(query) = parts.uri.query().filter(|query| !query.is_empty()) {
                    target.push_str(query);
                    target.push('&');
                }
                target.push_str(pair);
                let result = retarget(&mut parts.uri, target.as_bytes());
                target.zeroize();
                result
            }
        }
    }
}

/// Replaces path and query, and leaves the rest as it is.
fn retarget(uri: &mut Uri, target: &[u8]) -> Result<(), Error> {
    let target = Bytes::from_owner(Zeroizing::new(target.to_vec()));
    let target = PathAndQuery::from_maybe_shared(target).map_err(|_too_long| Error::Target)?;
    let mut parts = std::mem::take(uri).into_parts();
    parts.path_and_query = Some(target);
    *uri = Uri::from_parts(parts).map_err(|_the_target_is_in_it| Error::Target)?;
    Ok(())
}

#[cfg(test)]
mod tests;
