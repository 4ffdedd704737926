//! One request: decide, inject, forward, record.

use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, header, request, response};
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::upgrade::OnUpgrade;

use crate::addr::{Authority, HostName, UpstreamAddr};
use crate::audit::record::Protocol;
use crate::audit::{Kind, Opening, Phase, Recorder};
use crate::credential;
use crate::http::headers::{self, Form};
use crate::http::response::{Client, Refusal, Unavailable, UpstreamFault};
use crate::http::{authority, query, response as answers};
use crate::identity::Identity;
use crate::net::requests::{Notice, Refused};
use crate::policy::{self, Call, Decision, DenialReason, NormalPath, Permit, Scheme};

use super::body::{DownloadBody, Relay, UploadBody};
use super::connection::Connection;
use super::failure::Failure;
use super::finish::Finish;
use super::in_force::Enforced;
use super::pool::{Key, SendError, Versions};
use super::tracker::StillAllowed;
use super::{upgrade, upstream};

/// How requests came in: the connection, and what TLS said of it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) connection: Rc<Connection>,
    pub(super) scheme: Scheme,
    pub(super) sni: Option<HostName>,
    pub(super) http2: bool,
    /// Which requests were refused before they were read, and whether protocols were switched.
    pub(super) notice: Notice,
}

/// What the request is for, once SNI, Host and the dialled port agree and the path has one meaning.
struct Target {
    form: Form,
    authority: Authority,
    path: NormalPath,
    query: Option<Box<str>>,
}

/// Answers one request. Never fails: what goes wrong becomes the answer, and the record.
pub(super) async fn serve(
    entry: Rc<Entry>,
    request: Request<Incoming>,
    refused: Option<Refused>,
) -> Result<Response<DownloadBody>, Infallible> {
    let (mut parts, body) = request.into_parts();
    let client = Client::of(parts.version, &parts.headers);
    let as_came = parts.uri.clone();
    let target = match &refused {
        None => target(&entry, &mut parts).map_err(Failure::denied),
        Some(refused) => Err(Failure::from(refused)),
    };
    let asked = match &refused {
        None => Asked::new(&parts, &as_came, target.as_ref().ok(), client),
        Some(refused) => Asked::unread(refused),
    };
    let recorder = match open(&entry, &asked) {
        Ok(recorder) => recorder,
        Err(unavailable) => {
            // The log has said once that it fails, and the count of such calls becomes a record.
            tracing::debug!(%unavailable, "a call was refused: it could not be recorded");
            let refusal = match unavailable {
                crate::audit::Unavailable::Quota { .. } | crate::audit::Unavailable::Table => {
                    Failure::denied(DenialReason::Limit).refusal()
                }
                crate::audit::Unavailable::Sink { .. } => Refusal::Unavailable(Unavailable::Audit),
            };
            return Ok(last(&entry, own(answers::refuse(&refusal, "", client))));
        }
    };
    let mut finish = Finish::new(&entry, recorder);
    let answer = match target {
        Ok(target) => go(&entry, &mut finish, target, parts, body).await,
        Err(failure) => Err(failure),
    };
    Ok(match answer {
        Ok(Answer::Relay(head, body)) => last(&entry, relay(head, body, finish)),
        Ok(Answer::Upgrade(switched)) => upgrade::relay(switched, finish),
        Err(failure) => last(&entry, refuse(failure, finish, client)),
    })
}

/// When the worker drains, an HTTP/1 client is told that its connection carries no other request: it can't send one
/// that meets a closed connection (RFC 9112 section 9.6). HTTP/2 has GOAWAY for that.
fn last(entry: &Entry, mut response: Response<DownloadBody>) -> Response<DownloadBody> {
    if !entry.http2 && entry.connection.thread.draining.is_cancelled() {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    response
}

/// What came of a call that was forwarded.
enum Answer {
    Relay(response::Parts, Incoming),
    Upgrade(upgrade::Switched),
}

/// The phases of a call. Everything that can refuse comes before [`forward`].
async fn go(
    entry: &Rc<Entry>,
    finish: &mut Finish,
    target: Target,
    mut parts: request::Parts,
    body: Incoming,
) -> Result<Answer, Failure> {
    finish.has_room()?;
    let permit = decide(entry, finish, &parts, &target).await?;
    let credential = inject(entry, finish, &permit, &mut parts)?;
    let address = upstream::address(&entry.connection, &permit).await?;
    forward(
        entry,
        finish,
        Outgoing {
            permit,
            address,
            parts,
            body,
            credential,
            form: target.form,
        },
    )
    .await
}

/// Reads what the request is for and brings it into the one form that is matched and sent.
fn target(entry: &Entry, parts: &mut request::Parts) -> Result<Target, DenialReason> {
    if entry.http2 {
        // HTTP/1.1 heads are measured before they are read.
        headers::measure(parts, entry.connection.thread.shared.limits.head())?;
    }
    let form = headers::form(parts)?;
    let dialled = entry.connection.original().0.port();
    let authority = authority::settle(parts, entry.scheme, entry.sni.as_ref(), dialled)?;
    headers::clean_request(&mut parts.headers, &form);
    let path = NormalPath::parse(parts.uri.path()).map_err(|_ambiguous| DenialReason::AmbiguousPath)?;
    let query = parts.uri.query();
    let query = query.map(|query| query::without_overrides(query).unwrap_or_else(|| query.to_owned()));
    let query = query
        .filter(|query| !query.is_empty())
        .map(String::into_boxed_str);
    parts.uri = origin_form(&path, query.as_deref())?;
    Ok(Target {
        form,
        authority,
        path,
        query,
    })
}

/// What is matched is what is sent: the target is written anew from the normal path.
fn origin_form(path: &NormalPath, query: Option<&str>) -> Result<Uri, DenialReason> {
    let text = match query {
        Some(query) => format!("{}?{query}", path.as_str()),
        None => path.as_str().to_owned(),
    };
    let target = PathAndQuery::try_from(text).map_err(|_invalid| DenialReason::AmbiguousPath)?;
    Ok(Uri::from(target))
}

/// What a request asks for, as its record tells it.
struct Asked<'a> {
    grpc: bool,
    authority: Option<&'a Authority>,
    method: &'a str,
    path: &'a str,
    query: Option<&'a str>,
}

impl<'a> Asked<'a> {
    fn new(parts: &'a request::Parts, as_came: &'a Uri, target: Option<&'a Target>, client: Client) -> Self {
        Self {
            grpc: client.grpc,
            authority: target.map(|target| &target.authority),
            method: parts.method.as_str(),
            path: target.map_or(as_came.path(), |target| target.path.as_str()),
            query: as_came.query(),
        }
    }

    fn unread(refused: &'a Refused) -> Self {
        let (path, query) = match refused.target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (refused.target.as_str(), None),
        };
        Self {
            grpc: false,
            authority: None,
            method: &refused.method,
            path,
            query,
        }
    }
}

fn open(entry: &Entry, asked: &Asked<'_>) -> Result<Recorder, crate::audit::Unavailable> {
    let protocol = match (entry.http2, asked.grpc) {
        (true, true) => Protocol::Grpc,
        (true, false) => Protocol::H2,
        (false, _) => Protocol::H1,
    };
    let shared = &entry.connection.thread.shared;
    let begun = shared.audit.begin(Opening {
        connection: &entry.connection.log(),
        kind: Kind::Call,
        scheme: Some(entry.scheme),
        protocol: Some(protocol),
        authority: asked.authority,
        method: Some(asked.method),
        path: Some(asked.path),
        query: asked.query,
    });
    entry.connection.begun();
    let mut recorder = begun?;
    recorder.policy(&shared.policy.current().version);
    Ok(recorder)
}

/// Puts the call to the policy, and registers it for the policies to come.
async fn decide(
    entry: &Rc<Entry>,
    finish: &mut Finish,
    parts: &request::Parts,
    target: &Target,
) -> Result<Permit, Failure> {
    refresh_executable(&entry.connection).await;
    let enforced = entry.connection.thread.shared.policy.current();
    let identity = entry.connection.identity();
    let decision = policy::engine::decide(&enforced.policy, &identity, &call(entry, parts, target));
    finish.recorder().policy(&enforced.version);
    finish.recorder().reached(Phase::Decided);
    match decision {
        Decision::Deny(denial) => Err(Failure::Denied(denial)),
        Decision::Allow(permit) => {
            finish.recorder().permitted(&permit);
            finish
                .registration()
                .decided(still_allowed(entry, parts, target, &enforced));
            Ok(permit)
        }
    }
}

fn call<'a>(entry: &Entry, parts: &'a request::Parts, target: &'a Target) -> Call<'a> {
    Call {
        scheme: entry.scheme,
        authority: &target.authority,
        method: parts.method.as_str(),
        path: &target.path,
        query: target.query.as_deref().unwrap_or_default(),
        headers: &parts.headers,
    }
}

/// On a kept connection the process may have become another program: where rules ask, look again. What can't
/// be seen again is unknown, and unknown denies.
async fn refresh_executable(connection: &Connection) {
    let shared = &connection.thread.shared;
    let enforced = shared.policy.current();
    let identity = connection.identity();
    let Some(workload) = enforced.policy.workload(&identity.workload) else {
        return;
    };
    if !workload.needs_exe() {
        return;
    }
    let asked = shared
        .supervisor
        .executable(&connection.origin.to_bytes(), workload.needs_digest())
        .await;
    let executable = match asked {
        Ok(executable) => Some(executable),
        Err(error) => {
            tracing::debug!(client = %connection.client, %error, "the caller's executable can't be proven any more");
            None
        }
    };
    if executable != identity.executable {
        connection.reidentified(Identity {
            executable,
            ..(*identity).clone()
        });
    }
}

/// The question that a new policy is asked about this call while it is under way.
fn still_allowed(
    entry: &Rc<Entry>,
    parts: &request::Parts,
    target: &Target,
    enforced: &Enforced,
) -> StillAllowed {
    let entry = Rc::clone(entry);
    let authority = target.authority.clone();
    let path = target.path.clone();
    let query = target.query.clone();
    let method = parts.method.clone();
    // Only policies with rules on headers pay for a copy of them.
    let headers = enforced.needs_headers.then(|| parts.headers.clone());
    Box::new(move || {
        let enforced = entry.connection.thread.shared.policy.current();
        if enforced.needs_headers && headers.is_none() {
            // The new policy asks for what was not kept: missing knowledge denies.
            return false;
        }
        let none = HeaderMap::new();
        let call = Call {
            scheme: entry.scheme,
            authority: &authority,
            method: method.as_str(),
            path: &path,
            query: query.as_deref().unwrap_or_default(),
            headers: headers.as_ref().unwrap_or(&none),
        };
        matches!(
            policy::engine::decide(&enforced.policy, &entry.connection.identity(), &call),
            Decision::Allow(_)
        )
    })
}

fn inject(
    entry: &Entry,
    finish: &mut Finish,
    permit: &Permit,
    parts: &mut request::Parts,
) -> Result<Option<credential::Injected>, Failure> {
    let store = &entry.connection.thread.shared.credentials;
    let injected = credential::inject(permit, store, parts).map_err(|error| Failure::from(&error))?;
    if let Some(injected) = &injected {
        finish
            .recorder()
            .credential(injected.name.as_str(), &injected.version);
    }
    Ok(injected)
}

/// A request that may go out.
struct Outgoing {
    permit: Permit,
    address: UpstreamAddr,
    parts: request::Parts,
    body: Incoming,
    credential: Option<credential::Injected>,
    form: Form,
}

impl Outgoing {
    fn key(&self, entry: &Entry) -> Key {
        let versions = match (self.permit.scheme(), &self.form) {
            (Scheme::Http, _) | (_, Form::WebSocket(_)) => Versions::Http1,
            (Scheme::Https, Form::Plain) if entry.http2 => Versions::Http2First,
            (Scheme::Https, Form::Plain) => Versions::Http1First,
        };
        Key {
            workload: self.permit.workload().clone(),
            netns_cookie: entry.connection.identity().netns_cookie,
            authority: self.permit.authority().clone(),
            scheme: self.permit.scheme(),
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
async fn forward(entry: &Rc<Entry>, finish: &mut Finish, outgoing: Outgoing) -> Result<Answer, Failure> {
    let key = outgoing.key(entry);
    let Outgoing {
        permit,
        address,
        mut parts,
        body,
        credential,
        form,
    } = outgoing;
    finish.recorder().upstream(address.0);
    let client = parts.extensions.remove::<OnUpgrade>();
    let body = finish.uploading(body);
    let thread = &entry.connection.thread;
    let dial = async || upstream::dial(thread, &permit, address, key.versions).await;

    let mut lease = thread.pool.lease(&key, address, dial).await?;
    finish.recorder().upstream(lease.peer().0);
    finish.recorder().reached(Phase::Connected);
    let mut request = Request::from_parts(parts, body);
    let response = loop {
        request = speak(request, &permit, lease.is_http2())?;
        let sent = tokio::select! {
            sent = lease.send(request) => sent,
            end = finish.until_ended() => return Err(end.into()),
            () = finish.overdue() => {
                let late = "the upstream did not answer in time";
                return Err(Failure::upstream(UpstreamFault::Timeout, &late));
            }
        };
        match sent {
            Ok(response) => break response,
            // The kept connection was closed meanwhile, before a byte of this request left.
            Err(SendError::Unsent(unsent)) if lease.reused() => {
                request = *unsent;
                lease = thread.pool.lease(&key, address, dial).await?;
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
    answer(finish, response, client, &form, credential.is_some())
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
    response: Response<Incoming>,
    client: Option<OnUpgrade>,
    form: &Form,
    credentialed: bool,
) -> Result<Answer, Failure> {
    let (mut head, body) = response.into_parts();
    headers::websocket::check_switch(form, &head)
        .map_err(|bad| Failure::upstream(UpstreamFault::Protocol, &bad))?;
    finish.recorder().status(head.status.as_u16());
    headers::clean_response(&mut head.headers, form, credentialed);
    if head.status != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Answer::Relay(head, body));
    }
    let client =
        client.ok_or_else(|| Failure::internal("upgrade", &"the client's side can't be switched"))?;
    finish.recorder().protocol(Protocol::Ws);
    finish.switched();
    Ok(Answer::Upgrade(upgrade::Switched {
        response: Response::from_parts(head, body),
        client,
    }))
}

fn relay(mut head: response::Parts, body: Incoming, finish: Finish) -> Response<DownloadBody> {
    head.version = http::Version::default();
    if body.is_end_stream() {
        // HEAD, 204, 304 and empty answers: hyper does not ask for a body that can't be.
        finish.complete();
        return Response::from_parts(head, DownloadBody::Own(Full::default()));
    }
    Response::from_parts(head, DownloadBody::Upstream(Box::new(Relay::new(body, finish))))
}

fn refuse(failure: Failure, mut finish: Finish, client: Client) -> Response<DownloadBody> {
    let id = finish.recorder().id().to_string();
    let response = answers::refuse(&failure.refusal(), &id, client);
    finish.recorder().status(response.status().as_u16());
    finish.fail(failure);
    own(response)
}

fn own(response: Response<Full<Bytes>>) -> Response<DownloadBody> {
    response.map(DownloadBody::Own)
}
