//! What a request asks for, as its record tells it from the beginning.

use http::{Uri, request};

use crate::addr::Authority;
use crate::audit::record::Protocol;
use crate::audit::{Kind, Opening, Recorder, Unavailable};
use crate::http::response::Client;
use crate::net::requests::Refused;

use super::{Entry, Target};

/// Method, authority, path and query as far as they are known.
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

    /// Opens the record, before anything is decided.
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
