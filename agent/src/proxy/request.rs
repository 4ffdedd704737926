//! One request: decide, inject, forward, record.

mod asked;

use std::future::{self, Future};
use std::pin::Pin;
use std::rc::Rc;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, header, request, response};
use http_body_util::Full;
use hyper::body::{Body, Incoming};

use crate::addr::{Authority, HostName};
use crate::audit::Phase;
use crate::credential;
use crate::http::headers::{self, Form};
use crate::http::response::{Client, Refusal, Unavailable};
use crate::http::{authority, query, response as answers};
use crate::identity::Identity;
use crate::net::requests::{Notice, Refused};
use crate::policy::{self, Call, Decision, DenialReason, NormalPath, Permit, Scheme};

use super::answer::AnswerBody;
use super::body::{DownloadBody, Relay, UploadBody};
use super::connection::Connection;
use super::failure::Failure;
use super::finish::Finish;
use super::forward::{Answer, Cleared, forward};
use super::in_force::Enforced;
use super::taking::Taking;
use super::tracker::StillAllowed;
use super::{upgrade, upstream};
use asked::Asked;

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

/// The answer to come. On HTTP/2 alone an error, REFUSED_STREAM: the upstream has not read the request, and clients send it
/// again by themselves (RFC 9113 section 8.7). Boxed: a call's state is kilobytes, for which a connection without a call
/// should have no room, and which the library would move several times.
pub(super) type Answering = Pin<Box<dyn Future<Output = Result<Response<DownloadBody>, h2::Error>>>>;

/// Answers one request; what goes wrong becomes the answer, and the record.
pub(super) fn serve(
    entry: Rc<Entry>,
    request: Request<Incoming>,
    refused: Option<Refused>,
    taking: Option<Rc<Taking>>,
) -> Answering {
    match begin(&entry, request, refused, taking) {
        Ok(mut begun) => Box::pin(async move {
            let cleared = clear(&entry, &mut begun).await;
            let answer = match cleared {
                Ok(cleared) => {
                    let request = Request::from_parts(begun.parts, begun.body);
                    forward(&entry, &mut begun.finish, &cleared, &begun.target.form, request).await
                }
                Err(failure) => Err(failure),
            };
            conclude(&entry, answer, begun.finish, begun.client)
        }),
        Err(answer) => Box::pin(future::ready(Ok(last(&entry, *answer)))),
    }
}

/// A call whose record has begun.
struct Begun {
    finish: Finish,
    target: Target,
    parts: request::Parts,
    body: UploadBody,
    client: Client,
}

/// Reads what the request is for and begins its record.
///
/// # Errors
/// The answer to one that goes no further.
fn begin(
    entry: &Rc<Entry>,
    request: Request<Incoming>,
    refused: Option<Refused>,
    taking: Option<Rc<Taking>>,
) -> Result<Begun, Box<Response<DownloadBody>>> {
    let (mut parts, body) = request.into_parts();
    let mut client = Client::of(&parts);
    if let Some(refused) = &refused {
        // In its place came the stand-in, which is a GET.
        client.head = refused.method == "HEAD";
    }
    let as_came = parts.uri.clone();
    let target = match &refused {
        None => target(entry, &mut parts).map_err(Failure::denied),
        Some(refused) => Err(Failure::from(refused)),
    };
    let asked = match &refused {
        None => Asked::new(&parts, &as_came, target.as_ref().ok(), client),
        Some(refused) => Asked::unread(refused),
    };
    let recorder = match asked.open(entry) {
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
            if let Some(taking) = &taking {
                taking.linger(body);
            }
            return Err(Box::new(own(answers::refuse(&refusal, "", client))));
        }
    };
    let mut finish = Finish::new(entry, recorder, taking);
    let body = finish.uploading(body);
    match target {
        Ok(target) => Ok(Begun {
            finish,
            target,
            parts,
            body,
            client,
        }),
        Err(failure) => Err(Box::new(refuse(failure, finish, client))),
    }
}

/// Everything that can refuse.
async fn clear(entry: &Rc<Entry>, begun: &mut Begun) -> Result<Cleared, Failure> {
    let Begun {
        finish,
        target,
        parts,
        ..
    } = begun;
    finish.has_room()?;
    let permit = decide(entry, finish, parts, target).await?;
    let credential = inject(entry, finish, &permit, parts)?;
    let address = upstream::address(&entry.connection, &permit);
    let address = finish.registration().unless_ended(address).await??;
    Ok(Cleared {
        permit,
        address,
        credential,
    })
}

/// Makes of what came of the call its answer.
fn conclude(
    entry: &Entry,
    answer: Result<Answer, Failure>,
    finish: Finish,
    client: Client,
) -> Result<Response<DownloadBody>, h2::Error> {
    let response = match answer {
        Ok(Answer::Relay(head, body)) => relay(head, body, finish),
        Ok(Answer::Upgrade(switched)) => upgrade::relay(switched, finish),
        Err(failure) if entry.http2 && failure.is_unread() => {
            finish.fail(failure);
            return Err(h2::Reason::REFUSED_STREAM.into());
        }
        Err(failure) => refuse(failure, finish, client),
    };
    Ok(last(entry, response))
}

/// When the worker drains, an HTTP/1 client is told that its connection carries no other request: it can't send one
/// that meets a closed connection (RFC 9112 section 9.6). HTTP/2 has GOAWAY for that.
fn last(entry: &Entry, mut response: Response<DownloadBody>) -> Response<DownloadBody> {
    let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if !entry.http2 && !switched && entry.connection.thread.draining.is_cancelled() {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    response
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
    parts.uri = origin_form(&parts.uri, &path, query.as_deref())?;
    Ok(Target {
        form,
        authority,
        path,
        query,
    })
}

/// What is matched is what is sent: the target is written anew from the normal path, unless it is that to the letter.
fn origin_form(came: &Uri, path: &NormalPath, query: Option<&str>) -> Result<Uri, DenialReason> {
    // By the text: of `?query` alone the parts would be the same, and it is sent without the path over HTTP/2.
    let is_normal = |target: &&PathAndQuery| {
        let rest = target.as_str().strip_prefix(path.as_str());
        rest.is_some_and(|rest| match query {
            Some(query) => rest.strip_prefix('?') == Some(query),
            None => rest.is_empty(),
        })
    };
    if let Some(target) = came.path_and_query().filter(is_normal) {
        return Ok(Uri::from(target.clone()));
    }
    let text = match query {
        Some(query) => format!("{}?{query}", path.as_str()),
        None => path.as_str().to_owned(),
    };
    let target = PathAndQuery::try_from(text).map_err(|_invalid| DenialReason::AmbiguousPath)?;
    Ok(Uri::from(target))
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
            let question = still_allowed(entry, parts, target, &permit, &enforced);
            finish.registration().decided(question);
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
    let needs = workload.needs();
    if !needs.exe {
        return;
    }
    let asked = shared
        .supervisor
        .executable(&identity.workload, &connection.origin.to_bytes(), needs.digest)
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

/// The question that a new policy is asked about this call while it is under way: whether it allows it, with all that it
/// has gone out with.
fn still_allowed(
    entry: &Rc<Entry>,
    parts: &request::Parts,
    target: &Target,
    permit: &Permit,
    enforced: &Enforced,
) -> StillAllowed {
    let entry = Rc::clone(entry);
    let permit = permit.clone();
    let path = target.path.clone();
    let query = target.query.clone();
    let method = parts.method.clone();
    // Only workloads with rules on headers pay for a copy of them.
    let headers = enforced
        .needs_headers(permit.workload())
        .then(|| parts.headers.clone());
    Box::new(move || {
        let enforced = entry.connection.thread.shared.policy.current();
        if enforced.needs_headers(permit.workload()) && headers.is_none() {
            // The new policy asks for what was not kept: missing knowledge denies.
            return false;
        }
        let none = HeaderMap::new();
        let call = Call {
            scheme: entry.scheme,
            authority: permit.authority(),
            method: method.as_str(),
            path: &path,
            query: query.as_deref().unwrap_or_default(),
            headers: headers.as_ref().unwrap_or(&none),
        };
        let identity = entry.connection.identity();
        matches!(
            policy::engine::decide(&enforced.policy, &identity, &call),
            Decision::Allow(now) if now.keeps(&permit)
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

fn relay(mut head: response::Parts, body: AnswerBody, finish: Finish) -> Response<DownloadBody> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_out_is_the_normal_path_and_the_query_to_the_letter() {
        for (came, query, out) in [
            ("/v1/a?b=c", Some("b=c"), "/v1/a?b=c"),
            ("/v1/a", None, "/v1/a"),
            ("/v1/a?", None, "/v1/a"),
            ("/v1/%61?b=c", Some("b=c"), "/v1/a?b=c"),
            ("/v1/a?b=c&_method=DELETE", Some("b=c"), "/v1/a?b=c"),
            ("http://api.example?b=c", Some("b=c"), "/?b=c"),
        ] {
            let uri: Uri = came.parse().unwrap();
            let path = NormalPath::parse(uri.path()).unwrap();
            let sent = origin_form(&uri, &path, query).unwrap();
            assert_eq!(sent.path_and_query().unwrap().as_str(), out, "{came}");
            assert!(sent.authority().is_none());
        }
    }
}
