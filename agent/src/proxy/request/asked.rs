//! What a request asks for, as its record tells it.

use http::{Uri, request};

use crate::addr::Authority;
use crate::audit::record::Protocol;
use crate::audit::{Kind, Opening, Recorder, Unavailable};
use crate::http::response::Client;
use crate::net::requests::Refused;

use super::{Entry, Target};

/// What a request asks for, as its record tells it.
pub(super) struct Asked<'a> {
    grpc: bool,
    authority: Option<&'a Authority>,
    method: &'a str,
    path: &'a str,
    query: Option<&'a str>,
}

impl<'a> Asked<'a> {
    pub(super) fn new(
        parts: &'a request::Parts,
        as_came: &'a Uri,
        target: Option<&'a Target>,
        client: Client,
    ) -> Self {
        Self {
            grpc: client.grpc,
            authority: target.map(|target| &target.authority),
            method: parts.method.as_str(),
            path: target.map_or(as_came.path(), |target| target.path.as_str()),
            query: as_came.query(),
        }
    }

    /// One that was refused before it was read.
    pub(super) fn unread(refused: &'a Refused) -> Self {
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

    /// Begins the call's record.
    ///
    /// # Errors
    /// If it can't be recorded: the call must not go on then.
    pub(super) fn open(&self, entry: &Entry) -> Result<Recorder, Unavailable> {
        let protocol = match (entry.http2, self.grpc) {
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
            authority: self.authority,
            method: Some(self.method),
            path: Some(self.path),
            query: self.query,
        });
        entry.connection.begun();
        let mut recorder = begun?;
        recorder.policy(&shared.policy.current().version);
        Ok(recorder)
    }
}
