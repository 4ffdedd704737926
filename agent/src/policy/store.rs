//! The current policy with its generation; swapped whole. Also reads the policy directory.

use std::fs;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::diagnostic::{Diagnostic, Source};
use super::model::Policy;
use super::parse::MAX_FILE;

/// A policy and which one it is: the first has generation 1.
#[derive(Clone, Debug)]
pub struct Current {
    /// Grows by one with each replacement.
    pub generation: u64,
    /// The policy.
    pub policy: Arc<Policy>,
}

/// Holds the policy that is in force. Reading never blocks.
#[derive(Debug)]
pub struct PolicyStore {
    current: ArcSwap<Current>,
    changes: watch::Sender<u64>,
}

impl PolicyStore {
    /// Starts with a policy as generation 1.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        let current = Current {
            generation: 1,
            policy: Arc::new(policy),
        };
        Self {
            current: ArcSwap::from_pointee(current),
            changes: watch::Sender::new(1),
        }
    }

    /// What is in force now. One decision uses one of these throughout.
    #[must_use]
    pub fn current(&self) -> Arc<Current> {
        self.current.load_full()
    }

    /// Puts another policy in force and tells who watches; gives its generation.
    pub fn replace(&self, policy: Policy) -> u64 {
        let policy = Arc::new(policy);
        let next = |now: &Arc<Current>| Current {
            generation: now.generation + 1,
            policy: Arc::clone(&policy),
        };
        let generation = self.current.rcu(next).generation + 1;
        // Two replacements at once: watchers must end on the later one.
        self.changes.send_if_modified(|seen| {
            let newer = generation > *seen;
            *seen = generation.max(*seen);
            newer
        });
        generation
    }

    /// Sees each change of the generation; live connections are decided anew on it.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

/// What reading and compiling a directory gave.
#[derive(Debug)]
pub struct Loaded {
    /// The policy, or every error of every file.
    pub policy: Result<Policy, Vec<Diagnostic>>,
    /// The files that could be read: what the worker is sent, and what messages quote.
    pub sources: Vec<Source>,
}

/// Reads all `*.toml` files of a directory, hidden ones left out, and compiles them together. Files that
/// can't be read are errors beside those of the others.
#[must_use]
pub fn load_dir(dir: &Path) -> Loaded {
    let (sources, mut found) = read_dir(dir);
    let policy = match Policy::compile(&sources) {
        Ok(policy) if found.is_empty() => Ok(policy),
        Ok(policy) => {
            found.extend_from_slice(policy.warnings());
            Err(found)
        }
        Err(more) => {
            found.extend(more);
            Err(found)
        }
    };
    Loaded { policy, sources }
}

fn read_dir(dir: &Path) -> (Vec<Source>, Vec<Diagnostic>) {
    let (mut sources, mut found) = (Vec::new(), Vec::new());
    let paths = list(dir).unwrap_or_else(|error| {
        let message = format!("the policy directory can't be read: {error}");
        found.push(Diagnostic::whole_file(&dir.display().to_string(), message));
        Vec::new()
    });
    for path in paths {
        match read_file(&path, MAX_FILE) {
            Ok(source) => sources.push(source),
            Err(diagnostic) => found.push(*diagnostic),
        }
    }
    (sources, found)
}

fn list(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|extension| extension == "toml") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// Reads one file of at most `max` bytes of UTF-8.
///
/// # Errors
/// Says why it can't be read; for invalid UTF-8 names the first bad byte's line and column.
pub fn read_file(path: &Path, max: usize) -> Result<Source, Box<Diagnostic>> {
    let name = path.display().to_string();
    let whole = |message: String| Box::new(Diagnostic::whole_file(&name, message));
    let mut bytes = Vec::new();
    let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    // A FIFO would block the open, a device never end.
    fs::File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .and_then(|file| {
            if !file.metadata()?.is_file() {
                return Err(std::io::Error::other("not a regular file"));
            }
            file.take(limit).read_to_end(&mut bytes)
        })
        .map_err(|error| whole(format!("the file can't be read: {error}")))?;
    if bytes.len() > max {
        let help = "the limit guards the agent; a policy may be split over several files";
        let diagnostic = whole(format!("the file is larger than {} MiB", max / (1024 * 1024)));
        return Err(Box::new(diagnostic.help(help)));
    }
    String::from_utf8(bytes)
        .map(|text| Source::new(&name, &text))
        .map_err(|error| {
            let good = error.utf8_error().valid_up_to();
            let before = String::from_utf8_lossy(error.as_bytes().get(..good).unwrap_or(&[])).into_owned();
            let span = super::Span {
                start: good,
                end: good,
            };
            let message = format!("the file is not UTF-8: byte {good} is wrong");
            Box::new(Diagnostic::error(&Source::new(&name, &before), span, message).help("save it as UTF-8"))
        })
}
