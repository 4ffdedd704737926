//! The end of a call, whichever way it comes: the record, the upstream connection, the count of live calls.

use std::rc::Rc;
use std::task::Context;

use hyper::body::Incoming;

use crate::audit::{Outcome, Recorder};
use crate::http::response::UpstreamFault;
use crate::net::deadline::Busy;
use crate::net::listener::Buffers;
use crate::policy::DenialReason;

use super::body::{Upload, UploadBody};
use super::connection::Connection;
use super::failure::{self, Failure};
use super::limits::Limits;
use super::pool::{Failed, Lease};
use super::request::Entry;
use super::taking::Taking;
use super::tracker::{End, Registration};

/// A call under way. Dropped without one of its endings (the client left and hyper let go of the answer) the
/// call is recorded as *aborted*, and its upstream connection is closed.
#[derive(Debug)]
pub(super) struct Finish {
    recorder: Recorder,
    tail: Tail,
}

/// What ends with the call beside its record.
#[derive(Debug)]
struct Tail {
    entry: Rc<Entry>,
    registration: Registration,
    taking: Option<Rc<Taking>>,
    upload: Option<Rc<Upload>>,
    lease: Option<Lease>,
    room: Option<Room>,
    _busy: Busy,
}

/// Buffers of the call's own, and those that it shares with the others on its connection.
#[derive(Debug)]
struct Room {
    _own: Buffers,
    _shared: Option<Rc<Buffers>>,
}

impl Room {
    fn take(connection: &Connection, http2: bool) -> Option<Self> {
        Some(Self {
            _own: connection.slot.buffers()?,
            _shared: if http2 {
                Some(connection.gathering()?)
            } else {
                None
            },
        })
    }
}

impl Finish {
    /// `taking` is there on HTTP/2.
    pub(super) fn new(entry: &Rc<Entry>, recorder: Recorder, taking: Option<Rc<Taking>>) -> Self {
        let connection = &entry.connection;
        let registration = connection.thread.tracker.register(&connection.cut);
        if let Some(taking) = &taking {
            taking.follow(registration.watch());
        }
        let room = Room::take(connection, taking.is_some());
        let tail = Tail {
            entry: Rc::clone(entry),
            registration,
            taking,
            upload: None,
            lease: None,
            room,
            _busy: connection.activity.begin(),
        };
        Self { recorder, tail }
    }

    /// The call's record in the making.
    pub(super) fn recorder(&mut self) -> &mut Recorder {
        &mut self.recorder
    }

    /// The call's place among the live ones.
    pub(super) fn registration(&self) -> &Registration {
        &self.tail.registration
    }

    /// Whether the call may go on: its workload may hold the buffers for it.
    ///
    /// # Errors
    /// If it holds too many.
    pub(super) fn has_room(&self) -> Result<(), Failure> {
        match self.tail.room {
            Some(_) => Ok(()),
            None => Err(Failure::denied(DenialReason::Limit)),
        }
    }

    /// What the operator set.
    pub(super) fn limits(&self) -> &Limits {
        &self.tail.entry.connection.thread.shared.limits
    }

    /// The request's body, which may be sent.
    pub(super) fn uploading(&mut self, body: Incoming) -> UploadBody {
        let (body, progress) = UploadBody::new(body, self.limits().idle(), self.tail.taking.clone());
        self.tail.upload = Some(progress);
        body
    }

    /// The answer comes on this connection.
    pub(super) fn leased(&mut self, lease: Lease) {
        self.tail.lease = Some(lease);
    }

    /// Bytes that went through a switched connection.
    pub(super) fn add(&mut self, up: u64, down: u64) {
        self.recorder.add_up(up);
        self.recorder.add_down(down);
    }

    /// Bytes of the answer that went to the client.
    pub(super) fn passed(&mut self, bytes: usize) {
        self.recorder.add_down(bytes as u64);
        if let Some(taking) = &self.tail.taking {
            taking.gave();
        }
    }

    /// Whether the client speaks HTTP/2.
    pub(super) fn is_http2(&self) -> bool {
        self.tail.taking.is_some()
    }

    /// Why the call must end now; if it need not, the task is woken when it must.
    pub(super) fn ended(&self, cx: &Context<'_>) -> Option<End> {
        self.tail.registration.ended(cx)
    }

    /// Waits until the call must end.
    pub(super) async fn until_ended(&self) -> End {
        self.tail.registration.until_ended().await
    }

    /// Waits until the upstream has been silent, and has taken nothing of the request, for too long. A client that
    /// sends its body slowly does not count against it.
    pub(super) async fn overdue(&self) {
        let taken = || self.tail.upload.as_ref().map_or(0, |upload| upload.bytes());
        let client_is_slow = || self.tail.upload.as_ref().is_some_and(|upload| upload.waits());
        let mut before = taken();
        loop {
            tokio::time::sleep(self.limits().answer()).await;
            let now = taken();
            if now == before && !client_is_slow() {
                return;
            }
            before = now;
        }
    }

    /// The answer went to the client in full.
    pub(super) fn complete(mut self) {
        self.count_upload();
        self.tail
            .entry
            .connection
            .thread
            .figures
            .ended(Outcome::Completed);
        self.recorder.finish(Outcome::Completed);
        self.tail.give_back();
    }

    /// The connection carries another protocol from here on.
    pub(super) fn switched(&self) {
        self.tail.entry.notice.switched();
    }

    /// A piece of the answer is asked for.
    pub(super) fn asked(&self) {
        if let Some(taking) = &self.tail.taking {
            taking.asked();
        }
    }

    /// Nobody takes the answer any more: the client left before its end, or had to be left.
    pub(super) fn left(self) {
        if let Some(end) = self.tail.registration.end() {
            return self.cut(end);
        }
        let stalled = self
            .tail
            .taking
            .as_ref()
            .is_some_and(|taking| taking.has_stalled());
        self.fail(if stalled {
            Failure::Downstream {
                kind: "stalled",
                message: "the client took nothing of the answer for too long".to_owned(),
            }
        } else {
            Failure::Left {
                message: "the client closed the connection before the answer's end".to_owned(),
            }
        });
    }

    /// The answer broke off.
    pub(super) fn broken(self, error: &dyn std::fmt::Display) {
        self.fail(Failure::upstream(UpstreamFault::Protocol, error));
    }

    /// The upstream fell silent in the middle of its answer.
    pub(super) fn silent(self) {
        let message = "the upstream sent nothing of its answer for too long";
        self.fail(Failure::upstream(UpstreamFault::Timeout, &message));
    }

    /// It had to end before its time.
    pub(super) fn cut(self, end: End) {
        self.fail(end.into());
    }

    /// It did not go through.
    pub(super) fn fail(mut self, failure: Failure) {
        self.tail.entry.connection.arrived();
        self.count_upload();
        let outcome = failure.finish(self.recorder);
        self.tail.entry.connection.thread.figures.ended(outcome);
    }

    /// Whose fault it is when a request could not be sent or answered.
    pub(super) fn of_send(&self, error: &Failed) -> Failure {
        if self.tail.upload.as_ref().is_some_and(|upload| upload.is_broken()) {
            return Failure::Downstream {
                kind: "body",
                message: "the client's body broke off".into(),
            };
        }
        failure::of_upstream_http(error)
    }

    fn count_upload(&mut self) {
        if let Some(upload) = &self.tail.upload {
            self.recorder.add_up(upload.bytes());
        }
    }
}

impl Drop for Tail {
    /// Nobody waits for the rest of a body whose call has ended.
    fn drop(&mut self) {
        if let Some(upload) = &self.upload {
            upload.abandon();
        }
    }
}

impl Tail {
    /// The connection can carry another request if this one went out in full.
    fn give_back(mut self) {
        let whole = self.upload.as_ref().is_none_or(|upload| upload.is_complete());
        if let (true, Some(lease)) = (whole, self.lease.take()) {
            self.entry.connection.thread.pool.give_back(lease);
        }
    }
}
