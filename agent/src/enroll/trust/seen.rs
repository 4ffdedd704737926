//! Whom a running process trusts: whether the agent's root is where programs look for roots, as that process sees the
//! host's files.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use super::{
    BUNDLE_VARIABLES, HOST_BUNDLES, MAX_BUNDLE_BYTES, TrustError, bundle_in, certificates, host_bundle,
};
use crate::identity::process::{HeldProcess, ProcessError};

/// How a process comes to trust the agent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Trusted {
    /// The agent's root is among the host's, as the process sees them.
    InPlace,
    /// This variable of the process, one at least, names a bundle with it.
    By(&'static str),
    /// Neither. TLS of its programs fails, unless they were told of the root in a way of their own.
    Not,
}

/// The agent's roots, and which bundles have been seen to hold them. Clones share what they have seen.
#[derive(Clone, Debug)]
pub struct OwnRoots {
    roots: Arc<[String]>,
    known: Arc<Mutex<HashMap<FileVersion, bool>>>,
}

/// Device, inode, time of the last change (s, ns) and size: a bundle that is the same one by these is read once.
type FileVersion = (u64, u64, i64, i64, u64);

impl OwnRoots {
    /// Those that the agent wrote to `directory` beside the host's; `None` if it wrote none.
    ///
    /// # Errors
    /// If they or the host's can't be read.
    pub fn written_to(directory: &Path) -> Result<Option<Self>, TrustError> {
        let Some(bundle) = bundle_in(directory)? else {
            return Ok(None);
        };
        let host = host_bundle()?;
        let host = certificates(&host);
        let own = certificates(&bundle)
            .into_iter()
            .filter(|root| !host.contains(root));
        let roots: Arc<[String]> = own.map(str::to_owned).collect();
        Ok((!roots.is_empty()).then(|| Self {
            roots,
            known: Arc::default(),
        }))
    }

    /// How `process` comes to trust them.
    ///
    /// # Errors
    /// If it has ended, or may not be looked into.
    pub fn trusted_by(&self, process: &HeldProcess) -> Result<Trusted, ProcessError> {
        let root = process.root()?;
        if HOST_BUNDLES.iter().any(|path| self.are_in(root.as_fd(), path)) {
            return Ok(Trusted::InPlace);
        }
        let environment = process.read("environ")?;
        let by = BUNDLE_VARIABLES
            .iter()
            .find(|name| value(&environment, name).is_some_and(|path| self.are_in(root.as_fd(), path)));
        Ok(by.map_or(Trusted::Not, |name| Trusted::By(name)))
    }

    /// Whether all of them are in the bundle at `path` below `root`. What can't be read there holds none.
    fn are_in(&self, root: BorrowedFd<'_>, path: &str) -> bool {
        // Its links must not lead the reader out of the process's root; and what is there may be no file: to open a device, a
        // pipe or one of the kernel's own files does something.
        let how = OFlags::PATH | OFlags::CLOEXEC;
        let Ok(place) = openat2(root, path, how, Mode::empty(), ResolveFlags::IN_ROOT) else {
            return false;
        };
        let place = File::from(place);
        let Ok(found) = place.metadata() else {
            return false;
        };
        if !found.is_file() || found.len() == 0 || found.len() > MAX_BUNDLE_BYTES {
            return false;
        }
        let version = (
            found.dev(),
            found.ino(),
            found.mtime(),
            found.mtime_nsec(),
            found.len(),
        );
        if let Some(known) = self.known().get(&version) {
            return *known;
        }
        let holds = read(&place).is_ok_and(|text| {
            let there = certificates(&text);
            self.roots.iter().all(|own| there.contains(&own.as_str()))
        });
        self.known().insert(version, holds);
        holds
    }

    /// To be held for a moment only, not while a file is read.
    fn known(&self) -> MutexGuard<'_, HashMap<FileVersion, bool>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(place: &File) -> io::Result<String> {
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(format!("/proc/self/fd/{}", place.as_raw_fd()))?;
    let mut bytes = Vec::new();
    file.take(MAX_BUNDLE_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A variable in the form of environ(7).
fn value<'e>(environment: &'e str, name: &str) -> Option<&'e str> {
    let mut all = environment.split('\0').filter_map(|one| one.split_once('='));
    all.find_map(|(found, value)| (found == name).then_some(value))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const OWN: &str = "-----BEGIN CERTIFICATE-----\nQ0FMTEdBVEU=\n-----END CERTIFICATE-----";
    const OTHER: &str = "-----BEGIN CERTIFICATE-----\nT1RIRVI=\n-----END CERTIFICATE-----";

    fn roots() -> OwnRoots {
        OwnRoots {
            roots: [OWN.to_owned()].into(),
            known: Arc::default(),
        }
    }

    fn open(directory: &Path) -> std::os::fd::OwnedFd {
        File::open(directory).unwrap().into()
    }

    #[test]
    fn a_bundle_counts_if_it_holds_the_root_whatever_else_it_holds() {
        let directory = tempfile::tempdir().unwrap();
        let root = open(directory.path());
        let own = roots();
        fs::write(directory.path().join("both"), format!("{OTHER}\n{OWN}\n")).unwrap();
        fs::write(directory.path().join("other"), OTHER).unwrap();
        for _ in 0..2 {
            assert!(own.are_in(root.as_fd(), "/both"));
            assert!(!own.are_in(root.as_fd(), "/other"));
            assert!(!own.are_in(root.as_fd(), "/none"));
        }
        // Another file by then.
        fs::write(directory.path().join("other"), format!("{OTHER}\n{OWN}")).unwrap();
        assert!(own.are_in(root.as_fd(), "other"));
    }

    #[test]
    fn a_link_stays_below_the_process_root_and_a_pipe_is_no_bundle() {
        let outside = tempfile::tempdir().unwrap();
        let inside = tempfile::tempdir().unwrap();
        let bundle = outside.path().join("bundle");
        fs::write(&bundle, OWN).unwrap();
        std::os::unix::fs::symlink(&bundle, inside.path().join("link")).unwrap();
        nix::unistd::mkfifo(&inside.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let root = open(inside.path());
        assert!(!roots().are_in(root.as_fd(), "/link"));
        assert!(!roots().are_in(root.as_fd(), "/pipe"));
        let whole = open(Path::new("/"));
        assert!(
            !roots().are_in(whole.as_fd(), "/proc/self/status"),
            "it has no length"
        );
    }

    #[test]
    fn variables_are_found_by_their_whole_name() {
        let environment = "SSL_CERT_FILE_OLD=/no\0A=\0SSL_CERT_FILE=/a=b\0";
        assert_eq!(value(environment, "SSL_CERT_FILE"), Some("/a=b"));
        assert_eq!(value(environment, "CERT_FILE"), None);
    }
}
