//! Sends a permitted request and waits for the head of the answer.

use std::rc::Rc;
use std::sync::Arc;

use http::{Request, Response, StatusCode, response};
use hyper::upgrade::OnUpgrade;

use crate::addr::UpstreamAddr;
use crate::audit::Phase;
use crate::audit::record::Protocol;
use crate::credential;
use crate::http::authority;
use crate::http::headers::{self, Form};
use crate::http::response::UpstreamFault;
use crate::policy::{Permit, Scheme};

use super::answer::AnswerBody;
use super::body::UploadBody;
use super::failure::Failure;
use super::finish::Finish;
use super::pool::{Key, SendError, Versions};
use super::request::Entry;
use super::{upgrade, upstream};

/// What came of a call that was forwarded.
pub(super) enum Answer {
    Relay(response::Parts, AnswerBody),
    Upgrade(upgrade::Switched),
}

/// What a request may go out by.
pub(super) struct Cleared {
    pub(super) permit: Permit,
    pub(super) address: UpstreamAddr,
    pub(super) credential: Option<credential::Injected>,
}

impl Cleared {
    fn key(&self, entry: &Entry, form: &Form) -> Key {
        let versions = match (self.permit.scheme(), form) {
            (Scheme::Http, _) | (_, Form::WebSocket(_)) => Versions::Http1,
            (Scheme::Https, Form::Plain) if entry.http2 => Versions::Http2First,
            (Scheme::Https, Form::Plain) => Versions::Http1First,
        };
        Key {
            workload: self.permit.workload().clone(),
            netns_cookie: entry.connection.identity().netns_cookie,
            authority: self.permit.authority().clone(),
            scheme: self.permit.scheme(),
            roots: entry.connection.thread.shared.roots.current().number,
            credential: self
                .credential
                .as_ref()
                .map(|put| (put.name.clone(), Arc::clone(&put.version))),
            versions,
            public: upstream::is_public(self.address.0.ip()),
        }
    }
}

/// Sends the request and waits for the head of the answer.
pub(super) async fn forward(
    entry: &Rc<Entry>,
    finish: &mut Finish,
    cleared: &Cleared,
    form: &Form,
    mut request: Request<UploadBody>,
) -> Result<Answer, Failure> {
    let key = cleared.key(entry, form);
    let (permit, address) = (&cleared.permit, cleared.address);
    finish.recorder().upstream(address.0);
    if let Some(header) = cleared.credential.as_ref().and_then(|put| put.header.clone()) {
        request.body_mut().keep_from_trailers(header);
    }
    let client = request.extensions_mut().remove::<OnUpgrade>();
    let thread = &entry.connection.thread;
    // Boxed: few calls dial, and all would carry the room for it.
    let dial = async || Box::pin(upstream::dial(&entry.connection, permit, address, key.versions)).await;

    let leased = finish
        .registration()
        .unless_ended(thread.pool.lease(&key, address, dial));
    let mut lease = leased.await??;
    entry.connection.arrived();
    finish.recorder().upstream(lease.peer().0);
    finish.recorder().reached(Phase::Connected);
    let response = loop {
        request = speak(request, permit, lease.is_http2())?;
        let sent = tokio::select! {
            biased;
            end = finish.until_ended() => return Err(end.into()),
            sent = lease.send(request) => sent,
            () = finish.overdue() => {
                lease.condemn();
                let late = "the upstream did not answer in time";
                return Err(Failure::upstream(UpstreamFault::Timeout, &late));
            }
        };
        match sent {
            Ok(response) => break response,
            // The kept connection was closed meanwhile, before a byte of this request left.
            Err(SendError::Unsent(unsent)) if lease.reused() => {
                request = *unsent;
                let leased = finish
                    .registration()
                    .unless_ended(thread.pool.lease(&key, address, dial));
                lease = leased.await??;
                finish.recorder().upstream(lease.peer().0);
            }
            Err(SendError::Unsent(_)) => {
                return Err(Failure::upstream(
                    UpstreamFault::Connect,
                    &"the new connection was closed at once",
                ));
            }
            Err(SendError::Failed(error)) => return Err(finish.of_send(&error)),
        }
    };
    finish.recorder().reached(Phase::FirstByte);
    finish.leased(lease);
    answer(finish, response, client, form, cleared.credential.is_some())
}

/// Gives the request the form of the protocol that the upstream speaks.
fn speak(request: Request<UploadBody>, permit: &Permit, http2: bool) -> Result<Request<UploadBody>, Failure> {
    let (mut parts, body) = request.into_parts();
    if http2 {
        authority::to_http2(&mut parts, permit.authority(), permit.scheme()).map_err(Failure::denied)?;
        parts.version = http::Version::HTTP_2;
    } else {
        parts.version = http::Version::HTTP_11;
    }
    Ok(Request::from_parts(parts, body))
}

fn answer(
    finish: &mut Finish,
    response: Response<AnswerBody>,
    client: Option<OnUpgrade>,
    form: &Form,
    credentialed: bool,
) -> Result<Answer, Failure> {
    let (mut head, body) = response.into_parts();
    headers::websocket::check_switch(form, &head)
        .map_err(|bad| Failure::upstream(UpstreamFault::Protocol, &bad))?;
    finish.recorder().status(head.status.as_u16());
    headers::clean_response(&mut head.headers, form, credentialed);
    // HTTP/2 has no status 101 (RFC 9113 section 8.6).
    let body = match body {
        AnswerBody::Http1(body) if head.status == StatusCode::SWITCHING_PROTOCOLS => body,
        AnswerBody::Http1(_) | AnswerBody::Http2(_) => return Ok(Answer::Relay(head, body)),
    };
    let client =
        client.ok_or_else(|| Failure::internal("upgrade", &"the client's side can't be switched"))?;
    finish.recorder().protocol(Protocol::Ws);
    finish.switched();
    Ok(Answer::Upgrade(upgrade::Switched {
        response: Response::from_parts(head, body),
        client,
    }))
}
