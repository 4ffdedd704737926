//! The current value of each credential, by name and version: the worker's side.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::inject::{Error, Prepared, prepare};
use super::source::{Update, Value};
use super::spec::CredentialSpec;
use crate::policy::CredentialName;

/// What injection may use, as a snapshot that is swapped whole; reading it takes no lock.
#[derive(Debug, Default)]
pub struct Store {
    entries: ArcSwap<HashMap<CredentialName, Arc<Entry>>>,
}

/// One credential.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) spec: Arc<CredentialSpec>,
    pub(super) state: State,
}

/// Whether it may be used.
pub(super) enum State {
    Ready { prepared: Prepared, version: Arc<str> },
    Unavailable { reason: Arc<str> },
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready { version, .. } => write!(f, "Ready({version})"),
            Self::Unavailable { reason } => write!(f, "Unavailable({reason})"),
        }
    }
}

impl Store {
    /// A store that has no credential.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes over the credentials of a new policy. What is no longer in it is gone; one whose scheme changed has no
    /// value until it gets one; the others keep theirs.
    pub fn configure(&self, specs: impl IntoIterator<Item = CredentialSpec>) {
        let old = self.entries.load_full();
        let entries = specs.into_iter().map(|spec| {
            let entry = match old.get(&spec.name).map(Arc::as_ref) {
                Some(Entry { spec: before, state }) if *before.as_ref() == spec => Entry {
                    spec: Arc::clone(before),
                    state: state.again(),
                },
                Some(_) | None => Entry {
                    spec: Arc::new(spec),
                    state: State::Unavailable {
                        reason: "its value has not come in yet".into(),
                    },
                },
            };
            (entry.spec.name.clone(), Arc::new(entry))
        });
        self.entries.store(Arc::new(entries.collect()));
    }

    /// Takes a value that the supervisor sent. One that no policy names is dropped.
    pub fn update(&self, update: Update) {
        let old = self.entries.load_full();
        let Some(entry) = old.get(&update.name) else { return };
        let state = match update.value {
            Value::Ready { secret, version } => match prepare(&entry.spec.scheme, &secret) {
                Ok(prepared) => State::Ready { prepared, version },
                Err(error) => State::Unavailable {
                    reason: error.to_string().into(),
                },
            },
            Value::Unavailable { reason } => State::Unavailable { reason },
        };
        let mut entries = HashMap::clone(&old);
        let spec = Arc::clone(&entry.spec);
        entries.insert(update.name, Arc::new(Entry { spec, state }));
        self.entries.store(Arc::new(entries));
    }

    /// Each credential's name and its version, or why it can't be used.
    #[must_use]
    pub fn list(&self) -> Vec<(CredentialName, Result<Arc<str>, Arc<str>>)> {
        let entries = self.entries.load();
        let mut list: Vec<_> = entries
            .iter()
            .map(|(name, entry)| {
                let state = match &entry.state {
                    State::Ready { version, .. } => Ok(Arc::clone(version)),
                    State::Unavailable { reason } => Err(Arc::clone(reason)),
                };
                (name.clone(), state)
            })
            .collect();
        list.sort_by(|(a, _), (b, _)| a.cmp(b));
        list
    }

    pub(super) fn get(&self, name: &CredentialName) -> Result<Arc<Entry>, Error> {
        let entries = self.entries.load();
        let entry = entries.get(name).ok_or_else(|| Error::Unknown { name: name.clone() })?;
        Ok(Arc::clone(entry))
    }
}

impl State {
    fn again(&self) -> Self {
        match self {
            Self::Ready { prepared, version } => Self::Ready {
                prepared: prepared.clone(),
                version: Arc::clone(version),
            },
            Self::Unavailable { reason } => Self::Unavailable {
                reason: Arc::clone(reason),
            },
        }
    }
}
