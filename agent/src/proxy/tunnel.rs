//! TLS passed through unread: for clients that pin certificates or bring their own.
//!
//! The address is one that the agent itself resolved for the name: the client's choice proves nothing here,
//! since nobody checks the certificate for us. Never with a credential.

use std::rc::Rc;

use crate::addr::UpstreamAddr;
use crate::audit::record::Protocol;
use crate::audit::{Kind, Opening, Outcome, Recorder};
use crate::http::response::UpstreamFault;
use crate::net::farewell;
use crate::net::splice::{self, Counts, SpliceError};
use crate::policy::{self, DenialReason, Flow, Permit, Route, Scheme};
use crate::tls::downstream::Alert;

use super::alert;
use super::connection::{ClientStream, Connection};
use super::failure::Failure;
use super::tracker::StillAllowed;
use super::upstream;

/// Splices the client to the permit's host until both sides close, the policy changes its mind, or a limit.
pub(super) async fn serve(connection: &Connection, permit: &Permit, stream: ClientStream) {
    let begun = connection.thread.shared.audit.begin(Opening {
        connection: &connection.log(),
        kind: Kind::Tunnel,
        scheme: None,
        protocol: Some(Protocol::Tls),
        authority: Some(permit.authority()),
        method: None,
        path: None,
        query: None,
    });
    connection.begun();
    let mut recorder = match begun {
        Ok(recorder) => recorder,
        Err(unavailable) => {
            // As for a call: the log has said once that it fails, and the count becomes a record.
            tracing::debug!(%unavailable, "a tunnel was refused: it could not be recorded");
            farewell::send(stream, &Alert::InternalError.bytes()).await;
            return;
        }
    };
    recorder.policy(&connection.thread.shared.policy.current().version);
    recorder.permitted(permit);
    let counts = Counts::default();
    let ended = pass(connection, permit, stream, &counts, &mut recorder).await;
    recorder.add_up(counts.up());
    recorder.add_down(counts.down());
    let outcome = match ended {
        Ok(()) => {
            recorder.finish(Outcome::Completed);
            Outcome::Completed
        }
        Err(failure) => failure.finish(recorder),
    };
    connection.thread.figures.ended(outcome);
}

async fn pass(
    connection: &Connection,
    permit: &Permit,
    stream: ClientStream,
    counts: &Counts,
    recorder: &mut Recorder,
) -> Result<(), Failure> {
    let Some(_buffers) = connection.slot.buffers() else {
        let failure = Failure::denied(DenialReason::Limit);
        farewell::send(stream, &alert::of_failure(&failure).bytes()).await;
        return Err(failure);
    };
    let registration = connection.thread.tracker.register(&connection.cut);
    registration.decided(still_allowed(connection, permit));
    let connecting = registration.unless_ended(upstream::connect_resolved(connection, permit));
    let (upstream, UpstreamAddr(address)) = match connecting.await.map_err(Failure::from).flatten() {
        Ok(connected) => connected,
        Err(failure) => {
            farewell::send(stream, &alert::of_failure(&failure).bytes()).await;
            return Err(failure);
        }
    };
    connection.arrived();
    recorder.upstream(address);
    let patience = connection.thread.shared.limits.tunnel_patience();
    let splicing = splice::splice(stream, upstream, patience, counts);
    let spliced = registration.unless_ended(splicing).await?;
    spliced.map_err(|error| of_splice(&error))
}

fn still_allowed(connection: &Connection, permit: &Permit) -> StillAllowed {
    let thread = Rc::clone(&connection.thread);
    let identity = connection.identity();
    let permit = permit.clone();
    Box::new(move || {
        let flow = Flow {
            port: permit.authority().port,
            host: &permit.authority().host,
            scheme: Scheme::Https,
        };
        let enforced = thread.shared.policy.current();
        matches!(
            policy::engine::route(&enforced.policy, &identity, &flow),
            Ok(Route::Tunnel(now)) if now.keeps(&permit)
        )
    })
}

/// What the record says of a copy that did not end by itself.
pub(super) fn of_splice(error: &SpliceError) -> Failure {
    let (kind, side) = match error {
        SpliceError::Idle { .. } => ("idle", "client"),
        SpliceError::Stalled { side, .. } => ("stalled", *side),
        SpliceError::Io { side, .. } => ("io", *side),
    };
    if side == "upstream" {
        let fault = if kind == "stalled" {
            UpstreamFault::Timeout
        } else {
            UpstreamFault::Protocol
        };
        return Failure::upstream(fault, error);
    }
    Failure::Downstream {
        kind,
        message: error.to_string(),
    }
}
