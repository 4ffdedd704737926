//! Addresses and names as types, so that two of them can't be confused.
//!
//! A bare `SocketAddr` says nothing about whose address it is; each of these does.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The managed process's own end of an accepted connection.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct ClientAddr(pub SocketAddr);

/// Where the managed process meant to connect, as the kernel recorded it before the redirect.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct OrigDst(pub SocketAddr);

/// An address that the agent itself connects to.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct UpstreamAddr(pub SocketAddr);

/// An address that the agent listens on for one workload.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct ListenAddr(pub SocketAddr);

macro_rules! display_inner {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}
display_inner!(ClientAddr, OrigDst, UpstreamAddr, ListenAddr);

/// A DNS host name: lower case ASCII, letters, digits, hyphens and underscores in labels of 1 to 63
/// bytes, at most 253 bytes, no trailing dot, never an IP address (RFC 1123 section 2.1, RFC 5890 A-labels).
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostName(Arc<str>);

/// Why a text is no host name.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum HostNameError {
    /// Nothing there.
    #[error("the host name is empty")]
    Empty,
    /// Longer than DNS can carry.
    #[error("the host name is longer than 253 bytes")]
    TooLong,
    /// A label is empty, over 63 bytes, or has a byte that no host name has.
    #[error(
        "the host name has an empty, overlong or malformed label (write international names in their xn-- form)"
    )]
    Label,
    /// An address; rules and certificates here speak of names only.
    #[error("this is an IP address, not a host name")]
    IpAddress,
}

impl HostName {
    /// Reads a name as SNI, `Host` or a rule has it; upper case is folded, one trailing dot is dropped.
    ///
    /// # Errors
    /// Says which rule of the type's definition the text breaks.
    pub fn parse(text: &str) -> Result<Self, HostNameError> {
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.is_empty() {
            return Err(HostNameError::Empty);
        }
        if name.len() > 253 {
            return Err(HostNameError::TooLong);
        }
        if is_address(name) {
            return Err(HostNameError::IpAddress);
        }
        if !name.split('.').all(is_label) {
            return Err(HostNameError::Label);
        }
        Ok(Self(name.to_ascii_lowercase().into()))
    }

    /// The name in lower case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Resolvers read "1.2", "0x7f.1" and "2130706433" as addresses too: a name whose last label is a
/// number is never a DNS name (WHATWG URL, "ends in a number").
fn is_address(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    let digits = !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit());
    let numeric = digits
        || last
            .strip_prefix("0x")
            .or_else(|| last.strip_prefix("0X"))
            .is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
    numeric || name.parse::<IpAddr>().is_ok()
}

fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for HostName {
    type Err = HostNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl TryFrom<String> for HostName {
    type Error = HostNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<HostName> for String {
    fn from(name: HostName) -> Self {
        name.0.as_ref().to_owned()
    }
}

/// A host and a port: what a certificate, a `Host` header and a rule have to agree on.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Authority {
    /// The host's name.
    pub host: HostName,
    /// The TCP port.
    pub port: u16,
}

impl Authority {
    /// Puts a name and a port together.
    #[must_use]
    pub fn new(host: HostName, port: u16) -> Self {
        Self { host, port }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_folded_to_one_form() {
        let name = HostName::parse("API.Example.COM.").unwrap();
        assert_eq!(name.as_str(), "api.example.com");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for (text, error) in [
            ("", HostNameError::Empty),
            (".", HostNameError::Empty),
            ("a..b", HostNameError::Label),
            ("a.b..", HostNameError::Label),
            ("-a.b", HostNameError::Label),
            ("a b.c", HostNameError::Label),
            ("a\0.c", HostNameError::Label),
            ("bücher.example", HostNameError::Label),
            ("*.example.com", HostNameError::Label),
            ("a.com:443", HostNameError::Label),
            ("127.0.0.1", HostNameError::IpAddress),
            ("127.1", HostNameError::IpAddress),
            ("2130706433", HostNameError::IpAddress),
            ("0x7f.0x1", HostNameError::IpAddress),
            ("::1", HostNameError::IpAddress),
        ] {
            assert_eq!(HostName::parse(text), Err(error), "{text:?}");
        }
        assert_eq!(HostName::parse(&"a".repeat(254)), Err(HostNameError::TooLong));
        assert_eq!(HostName::parse(&"a".repeat(64)), Err(HostNameError::Label));
    }
}
