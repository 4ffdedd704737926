//! Keeps the supervisor's values current: reads each source, again when it changes, and says what is new.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use time::OffsetDateTime;
use time::macros::format_description;
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

use super::secret::Secret;
use super::spec::{CredentialSource, CredentialSpec};
use super::{exec, file, systemd};
use crate::policy::CredentialName;

/// How often files are looked at; an atomic rename onto the file shows as another inode.
pub const POLL: Duration = Duration::from_secs(1);
/// How soon a helper that failed is run again.
const RETRY: Duration = Duration::from_secs(10);

/// What has become of one credential.
#[derive(Debug)]
pub struct Update {
    /// Which one.
    pub name: CredentialName,
    /// Its value from now on.
    pub value: Value,
}

/// A credential's present value, or why it has none.
#[derive(Debug)]
pub enum Value {
    /// It may be used.
    Ready {
        /// The value.
        secret: Secret,
        /// Which value this is: a count and the time of first sight. Says nothing about the value.
        version: Arc<str>,
    },
    /// Calls that need it are refused.
    Unavailable {
        /// For the operator: which source, and what to do. Never holds the value.
        reason: Arc<str>,
    },
}

/// Why a source gives no value.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A file.
    #[error(transparent)]
    File(#[from] file::FileError),
    /// A systemd credential.
    #[error(transparent)]
    Systemd(#[from] systemd::SystemdError),
    /// A helper.
    #[error(transparent)]
    Exec(#[from] exec::ExecError),
    /// A helper's last answer is too old and there is no new one.
    #[error("the credential helper's last answer has ended, and it gives no new one")]
    Ended,
}

/// A helper under way; dropping it kills the helper.
struct Running {
    began: Instant,
    ttl: Duration,
    answer: oneshot::Receiver<Result<Secret, exec::ExecError>>,
    _task: AbortOnDropHandle<()>,
}

impl Running {
    fn start(command: Vec<String>, timeout: Duration, ttl: Duration) -> Self {
        let (tell, answer) = oneshot::channel();
        let task = tokio::spawn(async move {
            // The receiver is dropped only with the task.
            drop(tell.send(exec::run(&command, timeout).await));
        });
        Self {
            began: Instant::now(),
            ttl,
            answer,
            _task: AbortOnDropHandle::new(task),
        }
    }
}

/// One credential's source, with what it gave last.
pub struct Keeper {
    spec: CredentialSpec,
    seen: Option<file::Stamp>,
    last: Option<Secret>,
    failure: Option<Arc<str>>,
    count: u64,
    first_seen: SystemTime,
    due: Instant,
    expires: Option<Instant>,
    running: Option<Running>,
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper")
            .field("name", &self.spec.name)
            .field("count", &self.count)
            .field("failure", &self.failure)
            .finish_non_exhaustive()
    }
}

impl Keeper {
    /// A keeper that has read nothing yet.
    #[must_use]
    pub fn new(spec: CredentialSpec) -> Self {
        Self {
            spec,
            seen: None,
            last: None,
            failure: None,
            count: 0,
            first_seen: SystemTime::UNIX_EPOCH,
            due: Instant::now(),
            expires: None,
            running: None,
        }
    }

    /// What it keeps.
    #[must_use]
    pub fn spec(&self) -> &CredentialSpec {
        &self.spec
    }

    /// Looks at the source if it is time to. `None` if nothing changed. Call it every [`POLL`], within a runtime:
    /// a helper is started here and its answer taken by a later call, so that whoever calls never waits for one.
    pub fn poll(&mut self) -> Option<Update> {
        if let CredentialSource::Exec {
            command,
            timeout,
            ttl,
        } = self.spec.source.clone()
        {
            return self.poll_helper(command, timeout, ttl);
        }
        if Instant::now() < self.due {
            return None;
        }
        let result = match self.spec.source.clone() {
            CredentialSource::File { path } => self.read_file(&path),
            CredentialSource::Systemd { name } => match systemd::path(&name) {
                Ok(path) => self.read_file(&path),
                Err(error) => Err(error.into()),
            },
            CredentialSource::Exec { .. } => return None,
        };
        self.due = Instant::now() + POLL;
        match result {
            Ok(None) => None,
            Ok(Some(secret)) => self.took(secret),
            Err(error) => self.failed(&error),
        }
    }

    /// As [`Keeper::poll`], but waits for a helper that runs, at most for `limit`.
    pub async fn settle(&mut self, limit: Duration) -> Option<Update> {
        let update = self.poll();
        let Some(mut running) = self.running.take() else {
            return update;
        };
        match tokio::time::timeout(limit, &mut running.answer).await {
            Ok(answer) => self.helper_ended(&running, answer.ok()),
            Err(_elapsed) => {
                self.running = Some(running);
                update
            }
        }
    }

    /// The value again, as a first update for a new worker; reads nothing.
    #[must_use]
    pub fn current(&self) -> Option<Update> {
        let value = match (&self.failure, &self.last) {
            (Some(reason), _) => Value::Unavailable {
                reason: Arc::clone(reason),
            },
            (None, Some(secret)) => Value::Ready {
                secret: secret.for_channel().into_secret().ok()?,
                version: self.version(),
            },
            (None, None) => return None,
        };
        Some(self.update(value))
    }

    fn read_file(&mut self, path: &std::path::Path) -> Result<Option<Secret>, SourceError> {
        let stamp = file::stamp(path)?;
        if self.seen == Some(stamp) && self.failure.is_none() {
            return Ok(None);
        }
        self.seen = None;
        let (secret, stamp) = file::read(path)?;
        self.seen = Some(stamp);
        Ok(Some(secret))
    }

    /// A helper's answer is asked for again when four fifths of its time are over, so that a failure can be
    /// made good before it ends; when it has ended there is none.
    fn poll_helper(&mut self, command: Vec<String>, timeout: Duration, ttl: Duration) -> Option<Update> {
        let now = Instant::now();
        if let Some(mut running) = self.running.take() {
            match running.answer.try_recv() {
                Ok(answer) => return self.helper_ended(&running, Some(answer)),
                Err(oneshot::error::TryRecvError::Closed) => return self.helper_ended(&running, None),
                Err(oneshot::error::TryRecvError::Empty) => self.running = Some(running),
            }
        } else if self.due <= now {
            self.running = Some(Running::start(command, timeout, ttl));
        }
        if self.expires.is_some_and(|expires| expires <= now) {
            self.expires = None;
            return self.failed(&SourceError::Ended);
        }
        None
    }

    fn helper_ended(
        &mut self,
        running: &Running,
        answer: Option<Result<Secret, exec::ExecError>>,
    ) -> Option<Update> {
        let Some(answer) = answer else {
            self.due = Instant::now() + RETRY;
            return self.failed(&SourceError::Ended);
        };
        match answer {
            Ok(secret) => {
                self.due = running.began + running.ttl.mul_f32(0.8);
                self.expires = Some(running.began + running.ttl);
                self.took(secret)
            }
            Err(error) => {
                let now = Instant::now();
                self.due = now + RETRY;
                if let Some(expires) = self.expires.filter(|expires| *expires > now) {
                    self.due = self.due.min(expires);
                    tracing::warn!(credential = %self.spec.name, %error, "the value in use ends soon");
                    return None;
                }
                self.failed(&error.into())
            }
        }
    }

    fn took(&mut self, secret: Secret) -> Option<Update> {
        let same = self.last.as_ref().is_some_and(|last| last.same_as(&secret));
        if same && self.failure.is_none() {
            return None;
        }
        if !same {
            self.count += 1;
            self.first_seen = SystemTime::now();
        }
        self.failure = None;
        self.last = Some(secret);
        tracing::info!(credential = %self.spec.name, version = %self.version(), "a value is in use");
        self.current()
    }

    fn failed(&mut self, error: &SourceError) -> Option<Update> {
        let reason: Arc<str> = error.to_string().into();
        self.last = None;
        if self.failure.as_ref() == Some(&reason) {
            return None;
        }
        self.failure = Some(Arc::clone(&reason));
        tracing::warn!(credential = %self.spec.name, %reason, "no value: calls that need it are refused");
        Some(self.update(Value::Unavailable { reason }))
    }

    fn update(&self, value: Value) -> Update {
        Update {
            name: self.spec.name.clone(),
            value,
        }
    }

    fn version(&self) -> Arc<str> {
        let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
        let seen = OffsetDateTime::from(self.first_seen)
            .format(&format)
            .unwrap_or_default();
        format!("{}@{seen}", self.count).into()
    }
}

#[cfg(test)]
mod tests;
