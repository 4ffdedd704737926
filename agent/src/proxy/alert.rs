//! What a client that speaks TLS is told when its connection ends before a call could be read.

use crate::net::peek::PeekError;
use crate::policy::{Denial, DenialReason};
use crate::tls::downstream::Alert;

use super::failure::Failure;

/// A ClientHello that could not be read.
pub(super) fn of_peek(error: &PeekError) -> Alert {
    match error {
        PeekError::Malformed | PeekError::TooLarge { .. } => Alert::DecodeError,
        PeekError::Closed { .. }
        | PeekError::DetectionTimeout { .. }
        | PeekError::HelloTimeout { .. }
        | PeekError::Io { .. } => Alert::HandshakeFailure,
    }
}

/// A connection that was refused after its ClientHello.
pub(super) fn of_failure(failure: &Failure) -> Alert {
    match failure {
        Failure::Denied(Denial {
            reason: DenialReason::NoName,
            ..
        }) => Alert::UnrecognizedName,
        Failure::Denied(_) => Alert::AccessDenied,
        Failure::Malformed(_)
        | Failure::Downstream { .. }
        | Failure::Left { .. }
        | Failure::Unused
        | Failure::CutOff
        | Failure::Credential { .. }
        | Failure::Upstream { .. }
        | Failure::Internal { .. } => Alert::InternalError,
    }
}
