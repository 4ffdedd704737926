//! Why a call or connection did not go through, and what that means on each side: the client's answer, the
//! record's words. One total function for each.

use std::sync::LazyLock;

use crate::audit::record::Source;
use crate::audit::{Outcome, Recorder};
use crate::budget::Lines;
use crate::channel::worker::AskError;
use crate::credential;
use crate::http::framing::Fault;
use crate::http::response::{Refusal, Unavailable, UpstreamFault};
use crate::net::frames::Abuse;
use crate::net::peek::PeekError;
use crate::net::requests::{Cause, Refused};
use crate::policy::{Denial, DenialReason};
use crate::tls;

use super::pool::Failed;
use super::tracker::End;

/// Pins are often compared after the handshake, by clients that leave without an alert then.
const UNUSED: &str = "the client ended its connection after the handshake, without a request: it may pin another certificate or key; a `tunnel` rule passes it unread";

/// Why it did not go through.
#[derive(Debug)]
pub(super) enum Failure {
    /// Policy, or a check before it.
    Denied(Denial),
    /// The request is not HTTP, or not in one way only; what is wrong with it.
    Malformed(&'static str),
    /// The client broke off or misbehaved below HTTP.
    Downstream { kind: &'static str, message: String },
    /// The client left before it had said what it wants.
    Left { message: String },
    /// The client ended its connection after the handshake, without a request.
    Unused,
    /// The worker ended before the call did.
    CutOff,
    /// The credential can't be put on.
    Credential { message: String },
    /// The upstream can't be reached or does not behave.
    Upstream { fault: UpstreamFault, message: String },
    /// The agent itself.
    Internal { kind: &'static str, message: String },
}

impl Failure {
    pub(super) fn denied(reason: DenialReason) -> Self {
        Self::Denied(Denial { reason, rule: None })
    }

    pub(super) fn internal(kind: &'static str, error: &dyn std::fmt::Display) -> Self {
        Self::Internal {
            kind,
            message: error.to_string(),
        }
    }

    pub(super) fn upstream(fault: UpstreamFault, error: &dyn std::fmt::Display) -> Self {
        Self::Upstream {
            fault,
            message: error.to_string(),
        }
    }

    /// Whether the upstream has said that it did not read the request.
    pub(super) fn is_unread(&self) -> bool {
        matches!(
            self,
            Self::Upstream {
                fault: UpstreamFault::Unread,
                ..
            }
        )
    }

    /// What an HTTP client is told.
    pub(super) fn refusal(&self) -> Refusal {
        match self {
            Self::Denied(denial) => Refusal::Denied(denial.clone()),
            Self::Credential { .. } => Refusal::Unavailable(Unavailable::Credential),
            Self::Upstream { fault, .. } => Refusal::Upstream(*fault),
            // Who broke off won't read this; a client that only closed its sending side may.
            Self::Malformed(_) | Self::Downstream { .. } | Self::Left { .. } | Self::Unused => {
                Refusal::Denied(Denial {
                    reason: DenialReason::MalformedRequest,
                    rule: None,
                })
            }
            Self::CutOff => Refusal::Unavailable(Unavailable::Draining),
            Self::Internal { .. } => Refusal::Unavailable(Unavailable::Internal),
        }
    }

    /// Ends a record with this failure.
    pub(super) fn finish(self, mut recorder: Recorder) -> Outcome {
        let outcome = match self {
            Self::Denied(denial) => {
                recorder.denied(&denial);
                Outcome::Denied
            }
            Self::Malformed(what) => {
                let reason = DenialReason::MalformedRequest;
                recorder.error(Source::Downstream, reason.code(), what);
                recorder.denied(&Denial { reason, rule: None });
                Outcome::Denied
            }
            Self::Left { message } => {
                recorder.error(Source::Downstream, "closed", &message);
                Outcome::Aborted
            }
            Self::Unused => {
                recorder.error(Source::Downstream, "no_request", UNUSED);
                Outcome::Aborted
            }
            Self::CutOff => {
                let message = "the agent stopped while the call was under way";
                recorder.error(Source::Internal, "draining", message);
                Outcome::Aborted
            }
            Self::Downstream { kind, message } => {
                recorder.error(Source::Downstream, kind, &message);
                Outcome::Failed
            }
            Self::Credential { message } => {
                recorder.error(Source::Credential, "unavailable", &message);
                Outcome::Failed
            }
            Self::Upstream { fault, message } => {
                recorder.error(Source::Upstream, Refusal::Upstream(fault).code(), &message);
                Outcome::Failed
            }
            Self::Internal { kind, message } => {
                say(kind, &message);
                recorder.error(Source::Internal, kind, &message);
                Outcome::Failed
            }
        };
        recorder.finish(outcome);
        outcome
    }
}

/// Some a workload can bring about as often as it likes, as by what it does to its own network namespace.
fn say(kind: &'static str, message: &str) {
    static FAULTS: LazyLock<Lines<&'static str>> = LazyLock::new(Lines::default);
    if let Some(left_out) = FAULTS.next(&kind) {
        tracing::error!(kind, message, left_out, "a call failed inside the agent");
    }
}

/// What a request that was refused unread is told, and its record.
impl From<&Refused> for Failure {
    fn from(refused: &Refused) -> Self {
        match refused.cause {
            Cause::Fault(Fault::Malformed(what)) => Self::Malformed(what),
            Cause::Fault(Fault::TooLarge) => Self::denied(DenialReason::HeadTooLarge),
            Cause::Slow => Self::denied(DenialReason::HeadTimeout),
            Cause::Closed => Self::Left {
                message: "the client closed the connection in the middle of a request's head".to_owned(),
            },
        }
    }
}

impl From<End> for Failure {
    fn from(end: End) -> Self {
        match end {
            End::Revoked => Self::denied(DenialReason::Revoked),
            End::CutOff => Self::CutOff,
        }
    }
}

impl From<&PeekError> for Failure {
    fn from(error: &PeekError) -> Self {
        let kind = match error {
            PeekError::Closed { .. } => {
                return Self::Left {
                    message: error.to_string(),
                };
            }
            PeekError::HelloTimeout { .. } => "hello_timeout",
            PeekError::TooLarge { .. } => return Self::denied(DenialReason::Limit),
            PeekError::DetectionTimeout { .. } => return Self::denied(DenialReason::UnknownProtocol),
            PeekError::Malformed => "client_hello",
            PeekError::Io { .. } => "io",
        };
        Self::Downstream {
            kind,
            message: error.to_string(),
        }
    }
}

impl From<&credential::Error> for Failure {
    fn from(error: &credential::Error) -> Self {
        Self::Credential {
            message: error.to_string(),
        }
    }
}

/// What the supervisor did not answer. Who makes the agent ask for more than it may is told so: nothing is broken.
pub(super) fn of_question(kind: &'static str, error: &AskError) -> Failure {
    if matches!(error, AskError::Limit) {
        Failure::denied(DenialReason::Limit)
    } else {
        Failure::internal(kind, error)
    }
}

/// A failed handshake with an upstream.
pub(super) fn of_upstream_tls(error: &tls::Error) -> Failure {
    if !error.is_handshake() {
        return Failure::internal("tls", error);
    }
    let fault = if matches!(error, tls::Error::UpstreamCertificate { .. }) {
        UpstreamFault::Certificate
    } else if matches!(error, tls::Error::Timeout { .. }) {
        UpstreamFault::Timeout
    } else {
        UpstreamFault::Tls
    };
    Failure::upstream(fault, error)
}

/// A failed handshake with a client.
pub(super) fn of_client_tls(error: &tls::Error) -> Failure {
    if !error.is_handshake() {
        return Failure::internal("tls", error);
    }
    let kind = if matches!(error, tls::Error::ClientDistrust { .. }) {
        "client_distrust"
    } else if matches!(error, tls::Error::Timeout { .. }) {
        "handshake_timeout"
    } else {
        "handshake"
    };
    Failure::Downstream {
        kind,
        message: error.to_string(),
    }
}

/// A client that was cut off from its HTTP/2 connection.
pub(super) fn of_abuse(abuse: Abuse) -> Failure {
    match abuse {
        Abuse::SlowHead => Failure::denied(DenialReason::HeadTimeout),
        Abuse::Resets | Abuse::IdleFrames => Failure::Downstream {
            kind: "http2_flood",
            message: abuse.to_string(),
        },
    }
}

/// An HTTP/2 connection that the library ended because the client broke the protocol; `None` for all other ends.
pub(super) fn of_client_http2(error: &hyper::Error) -> Option<Failure> {
    let source = std::error::Error::source(error)?.downcast_ref::<h2::Error>()?;
    let reason = source.reason().filter(|_| source.is_library())?;
    Some(Failure::Downstream {
        kind: "http2",
        message: format!("the client broke the protocol: {}", reason.description()),
    })
}

/// What the upstream said when it did not answer a request.
pub(super) fn of_upstream_http(error: &Failed) -> Failure {
    let fault = match error {
        Failed::Http2(error) if is_unread(error) => UpstreamFault::Unread,
        Failed::Http1(_) | Failed::Http2(_) => UpstreamFault::Protocol,
    };
    let cause = match error {
        Failed::Http1(error) => std::error::Error::source(error),
        Failed::Http2(_) => None,
    };
    let cause = cause.map_or_else(String::new, |cause| format!(": {cause}"));
    Failure::upstream(fault, &format!("{error}{cause}"))
}

/// The library says so of streams behind the last one that GOAWAY names alone.
fn is_unread(error: &h2::Error) -> bool {
    let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    error.is_remote() && (error.is_go_away() || refused)
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use crate::http::response::{Client, refuse};

    use super::*;

    #[test]
    fn who_makes_the_agent_ask_too_much_is_told_so_and_all_else_is_the_agents_fault() {
        for (error, status, reason) in [
            (
                AskError::Limit,
                StatusCode::TOO_MANY_REQUESTS,
                Some(DenialReason::Limit),
            ),
            (AskError::Busy, StatusCode::INTERNAL_SERVER_ERROR, None),
            (AskError::TimedOut, StatusCode::INTERNAL_SERVER_ERROR, None),
            (AskError::Closed, StatusCode::INTERNAL_SERVER_ERROR, None),
        ] {
            let failure = of_question("namespace", &error);
            let answer = refuse(
                &failure.refusal(),
                "",
                Client {
                    grpc: false,
                    http1: true,
                    head: false,
                },
            );
            assert_eq!(answer.status(), status, "{error}");
            let denied = if let Failure::Denied(denial) = &failure {
                Some(denial.reason)
            } else {
                None
            };
            assert_eq!(denied, reason, "{error}");
        }
    }
}
