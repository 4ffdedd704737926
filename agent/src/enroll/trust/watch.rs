//! Keeps the bundle up with the host's roots while the agent runs.

use std::path::PathBuf;

use super::{Trust, TrustError, places, write_bundle};

type Stamp = Vec<Option<[i64; 4]>>;

/// Looks at the host's roots.
#[derive(Debug)]
pub struct Watch {
    root_pem: String,
    directory: PathBuf,
    written: Stamp,
    seen: Stamp,
}

impl Watch {
    /// Writes the bundle to `directory` for the first time.
    ///
    /// # Errors
    /// As [`write_bundle`].
    pub fn start(root_pem: &str, directory: PathBuf) -> Result<(Self, Trust), TrustError> {
        let seen = places::stamp();
        let trust = write_bundle(root_pem, &directory)?;
        let watch = Self {
            root_pem: root_pem.to_owned(),
            directory,
            written: seen.clone(),
            seen,
        };
        Ok((watch, trust))
    }

    /// Writes it again once the host's roots have changed and are the same at two looks: what renews them does it file
    /// by file. Costs a few stat(2) otherwise.
    ///
    /// # Errors
    /// As [`write_bundle`]; the next change is the next try.
    pub fn look(&mut self) -> Result<Option<Trust>, TrustError> {
        let now = places::stamp();
        let settled = now == self.seen;
        self.seen = now;
        if !settled || self.seen == self.written {
            return Ok(None);
        }
        self.written.clone_from(&self.seen);
        write_bundle(&self.root_pem, &self.directory).map(Some)
    }
}
