//! Keeps the bundle up with the host's roots while the agent runs.

use std::path::PathBuf;

use super::{Trust, TrustError, places, write_bundle};

type Stamp = Vec<Option<[i64; 4]>>;

/// Looks between a try that failed and the next: two seconds.
const LOOKS_BETWEEN: u32 = 4;

/// Looks at the host's roots.
#[derive(Debug)]
pub struct Watch {
    root_pem: String,
    directory: PathBuf,
    /// As of which look the bundle is; none while a try that failed is to be made again.
    written: Option<Stamp>,
    seen: Stamp,
    failure: Option<String>,
    pause: u32,
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
            written: Some(seen.clone()),
            seen,
            failure: None,
            pause: 0,
        };
        Ok((watch, trust))
    }

    /// Writes it again once the host's roots have changed and are the same at two looks: what renews them does it file
    /// by file. Costs a few stat(2) otherwise. To be called twice a second.
    ///
    /// # Errors
    /// As [`write_bundle`]; it is tried again.
    pub fn look(&mut self) -> Result<Option<Trust>, TrustError> {
        let now = places::stamp();
        let settled = now == self.seen;
        self.seen = now;
        self.pause = self.pause.saturating_sub(1);
        if !settled || self.pause > 0 || self.written.as_ref() == Some(&self.seen) {
            return Ok(None);
        }
        match write_bundle(&self.root_pem, &self.directory) {
            Ok(trust) => {
                self.written = Some(self.seen.clone());
                self.failure = None;
                Ok(Some(trust))
            }
            Err(error) => {
                self.again(&error);
                Err(error)
            }
        }
    }

    /// Has it done again, since something on the way to the new roots failed.
    pub fn again(&mut self, why: &dyn std::error::Error) {
        self.written = None;
        self.pause = LOOKS_BETWEEN;
        self.failure = Some(why.to_string());
    }

    /// Why the roots are those from before, while they are.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const ROOT: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

    #[test]
    fn what_could_not_be_written_is_tried_again_until_it_is() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("trust");
        let (mut watch, trust) = Watch::start(ROOT, directory.clone()).unwrap();
        assert!(watch.look().unwrap().is_none() && watch.failure().is_none());
        fs::remove_dir_all(&directory).unwrap();
        fs::write(&directory, "in the way").unwrap();
        watch.again(&std::io::Error::other("the roots changed"));
        let tries = |watch: &mut Watch| {
            (0..LOOKS_BETWEEN)
                .map(|_| watch.look())
                .find(|look| !matches!(look, Ok(None)))
        };
        for _ in 0..2 {
            assert!(matches!(tries(&mut watch), Some(Err(_))));
            assert!(watch.failure().is_some());
        }
        fs::remove_file(&directory).unwrap();
        assert!(matches!(tries(&mut watch), Some(Ok(Some(_)))));
        assert!(watch.failure().is_none() && trust.bundle.exists());
        assert!(tries(&mut watch).is_none());
    }
}
