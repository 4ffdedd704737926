//! What is allowed: the compiled policy, the question put to it and its answer.
//!
//! Pure: no IO, no clock, no globals. Only this tree can make a [`Permit`]; connecting to an upstream and
//! injecting a credential demand one, so forgetting to ask does not compile.

mod compile;
pub mod diagnostic;
pub mod engine;
pub mod explain;
mod index;
pub mod matcher;
pub mod model;
pub mod parse;
pub mod path;
pub mod reader;
pub mod spelling;
pub mod store;

use std::fmt;
use std::sync::Arc;

use crate::addr::{Authority, HostName};
use crate::identity::WorkloadName;

pub use diagnostic::{Diagnostic, Severity, Source, Span};
pub use engine::{decide, route};
pub use model::{Direct, ExecBy, Mode, Policy, Rule, RuleKind, Workload};
pub use path::NormalPath;

/// What one connection wants, as far as it is known before any HTTP is read.
#[derive(Clone, Copy, Debug)]
pub struct Flow<'a> {
    /// The port that the client dialled.
    pub port: u16,
    /// The name in the ClientHello, or in the plain HTTP request's Host.
    pub host: &'a HostName,
    /// TLS or plain HTTP.
    pub scheme: Scheme,
}

/// What to do with one connection.
#[derive(Debug)]
pub enum Route {
    /// Terminate TLS (or read the plain HTTP) and decide on each request.
    Intercept,
    /// Pass the TLS bytes through unread.
    Tunnel(Permit),
}

/// How the client speaks.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Scheme {
    /// HTTP in the clear.
    Http,
    /// HTTP over TLS.
    Https,
}

/// One request, as it will be sent.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// TLS or plain.
    pub scheme: Scheme,
    /// The name and port that SNI, Host and the dialled port agree on.
    pub authority: &'a Authority,
    /// The method, as sent.
    pub method: &'a str,
    /// The normalised path: what is matched is what is sent.
    pub path: &'a NormalPath,
    /// The raw query without `?`; empty if there is none.
    pub query: &'a str,
    /// The request's headers as the client sent them.
    pub headers: &'a http::HeaderMap,
}

/// The answer to a [`Call`].
#[derive(Debug)]
pub enum Decision {
    /// It may go out, in the way that the permit says.
    Allow(Permit),
    /// It may not.
    Deny(Denial),
}

/// Leave to send one request (or open one tunnel). Made by [`decide`] and [`route`] alone.
#[derive(Clone, Debug)]
pub struct Permit {
    workload: WorkloadName,
    authority: Authority,
    scheme: Scheme,
    rule: Option<Arc<str>>,
    credential: Option<CredentialName>,
    client_auth: ClientAuth,
    private: bool,
    observed: Option<Denial>,
}

impl Permit {
    /// Whose leave it is.
    #[must_use]
    pub fn workload(&self) -> &WorkloadName {
        &self.workload
    }
    /// The only place that it is good for.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }
    /// TLS or plain.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }
    /// The rule that gave it; `None` only for what `observe` mode lets through.
    #[must_use]
    pub fn rule(&self) -> Option<&Arc<str>> {
        self.rule.as_ref()
    }
    /// The credential to put on.
    #[must_use]
    pub fn credential(&self) -> Option<&CredentialName> {
        self.credential.as_ref()
    }
    /// Whether the client's own credentials stay on.
    #[must_use]
    pub fn client_auth(&self) -> ClientAuth {
        self.client_auth
    }
    /// Whether private, loopback, link-local and metadata addresses may be dialled.
    #[must_use]
    pub fn private(&self) -> bool {
        self.private
    }
    /// In `observe` mode: the denial that `enforce` would have given.
    #[must_use]
    pub fn observed(&self) -> Option<&Denial> {
        self.observed.as_ref()
    }
    /// Whether a call that went out by `before` has no right that this one, of a later policy, would not give it: what it
    /// carries, and where it may go, can't be taken back from it. The client's own credentials on what was only observed
    /// don't count: a rule that is written for it should end nothing.
    #[must_use]
    pub fn keeps(&self, before: &Self) -> bool {
        let passed = before.client_auth == ClientAuth::Pass && before.observed.is_none();
        (before.credential.is_none() || self.credential == before.credential)
            && (!passed || self.client_auth == ClientAuth::Pass)
            && (self.private || !before.private)
    }
}

/// What happens to the credentials that the client itself sent.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum ClientAuth {
    /// Taken off: an allowed host is also where data leaves with somebody else's key.
    #[default]
    Strip,
    /// Left on, because the rule says so.
    Pass,
}

/// Why something is refused, and by which rule if one did.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Denial {
    /// The kind of refusal.
    pub reason: DenialReason,
    /// The rule that refused, or the one that came nearest.
    pub rule: Option<Arc<str>>,
}

/// The kinds of refusal; `code` is what records and clients see and never changes.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum DenialReason {
    /// No kernel record, or one that names no workload.
    NoOrigin,
    /// The workload is not in the policy (any more).
    UnknownWorkload,
    /// The caller is in the workload's cgroup but does not meet the workload's own conditions.
    NotThisWorkload,
    /// No rule names this host and port.
    HostNotAllowed,
    /// Rules name the host, none this method and path (or headers, or query).
    CallNotAllowed,
    /// A rule would allow it, but not for this caller.
    CallerNotAllowed,
    /// A deny rule matched.
    DenyRule,
    /// The path could mean several things.
    AmbiguousPath,
    /// SNI, Host or :authority and the dialled port don't agree.
    NameMismatch,
    /// No SNI, or no Host.
    NoName,
    /// The dialled address is private and the rule has no `private = true`.
    PrivateAddress,
    /// The dialled address is none that the agent's resolvers give for the name.
    AddressNotOfName,
    /// Plain HTTP where no rule allows it by name.
    PlainHttp,
    /// Neither TLS nor HTTP.
    UnknownProtocol,
    /// A method or upgrade that is never passed (CONNECT, TRACE, h2c, ...).
    ForbiddenForm,
    /// The request breaks HTTP in a way that two parsers read differently.
    MalformedRequest,
    /// The request's head has more bytes or fields than the limits allow.
    HeadTooLarge,
    /// The request's head did not come in whole in time.
    HeadTimeout,
    /// A limit was reached.
    Limit,
    /// It was allowed when it began; a newer policy no longer allows it.
    Revoked,
}

impl DenialReason {
    /// The stable word for records and clients.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::NoOrigin => "no_origin",
            Self::UnknownWorkload => "unknown_workload",
            Self::NotThisWorkload => "not_this_workload",
            Self::HostNotAllowed => "host_not_allowed",
            Self::CallNotAllowed => "call_not_allowed",
            Self::CallerNotAllowed => "caller_not_allowed",
            Self::DenyRule => "deny_rule",
            Self::AmbiguousPath => "ambiguous_path",
            Self::NameMismatch => "name_mismatch",
            Self::NoName => "no_name",
            Self::PrivateAddress => "private_address",
            Self::AddressNotOfName => "address_not_of_name",
            Self::PlainHttp => "plain_http",
            Self::UnknownProtocol => "unknown_protocol",
            Self::ForbiddenForm => "forbidden_form",
            Self::MalformedRequest => "malformed_request",
            Self::HeadTooLarge => "head_too_large",
            Self::HeadTimeout => "head_timeout",
            Self::Limit => "limit",
            Self::Revoked => "revoked",
        }
    }

    /// Whether it is HTTP itself that the client broke: no policy could allow the request.
    #[must_use]
    pub fn breaks_http(self) -> bool {
        matches!(
            self,
            Self::MalformedRequest | Self::HeadTooLarge | Self::HeadTimeout
        )
    }
}

/// A credential's name in the policy: `[a-z0-9][a-z0-9_-]{0,63}`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct CredentialName(Arc<str>);

/// A text that can't name a credential.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a credential's name is 1 to 64 of a-z, 0-9, '-' and '_', and starts with a letter or digit")]
pub struct CredentialNameError;

impl CredentialName {
    /// Reads a credential's name.
    ///
    /// # Errors
    /// If the text has another form than the type's definition.
    pub fn parse(text: &str) -> Result<Self, CredentialNameError> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let starts = text.bytes().next().is_some_and(plain);
        let rest = text.bytes().all(|b| plain(b) || b == b'-' || b == b'_');
        if starts && rest && text.len() <= 64 {
            Ok(Self(text.into()))
        } else {
            Err(CredentialNameError)
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CredentialName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests;
