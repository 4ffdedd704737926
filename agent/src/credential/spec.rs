//! What the policy says about a credential: hosts, scheme, source.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use http::header::HeaderName;

use crate::addr::Authority;
use crate::policy::CredentialName;

/// A credential as the policy defines it; its value is elsewhere.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CredentialSpec {
    /// Its name.
    pub name: CredentialName,
    /// The only places that it may be sent to, whatever a rule says. Never empty.
    pub hosts: Vec<HostScope>,
    /// How it goes on a request.
    pub scheme: CredentialScheme,
    /// Where its value comes from.
    pub source: CredentialSource,
}

impl CredentialSpec {
    /// Whether it may be sent there. `path` is the normalised path of the request, without the query.
    #[must_use]
    pub fn covers(&self, authority: &Authority, path: &str) -> bool {
        self.hosts.iter().any(|scope| scope.covers(authority, path))
    }
}

/// An authority, and optionally the part of its paths, that a credential is good for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HostScope {
    /// Host and port.
    pub authority: Authority,
    /// Whole segments at the start of the path, without a slash at the end; `None` for every path.
    pub path_prefix: Option<String>,
}

impl HostScope {
    /// Whether this place is within it.
    #[must_use]
    pub fn covers(&self, authority: &Authority, path: &str) -> bool {
        let within = |prefix: &String| {
            path.strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.authority == *authority && self.path_prefix.as_ref().is_none_or(within)
    }
}

impl fmt::Display for HostScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}{}",
            self.authority,
            self.path_prefix.as_deref().unwrap_or("")
        )
    }
}

/// How a credential goes on a request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum CredentialScheme {
    /// `Authorization: Bearer VALUE` (RFC 6750).
    Bearer,
    /// `Authorization: Basic base64(username:VALUE)` (RFC 7617).
    Basic {
        /// The user's name; holds no colon.
        username: String,
    },
    /// A header of any name.
    Header {
        /// Its name.
        name: HeaderName,
        /// Goes before the value, the space included if one is wanted; `None` for the value alone.
        prefix: Option<String>,
    },
    /// A key in the query.
    Query {
        /// The key.
        name: String,
    },
}

/// Where a credential's value comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum CredentialSource {
    /// A file that only root can read.
    File {
        /// Absolute.
        path: PathBuf,
    },
    /// A file in `$CREDENTIALS_DIRECTORY` (systemd's LoadCredential=).
    Systemd {
        /// The credential's id; one file name.
        name: String,
    },
    /// The standard output of a program.
    Exec {
        /// The program's absolute path and its arguments; not empty.
        command: Vec<String>,
        /// How long it may run.
        timeout: Duration,
        /// How long a value is used before the program runs again.
        ttl: Duration,
    },
}
