//! Restart of the whole agent: this supervisor goes at once and its workers end alone; the next one takes over.
//!
//! The service manager keeps the listeners meanwhile, and one end of a socket pair, the baton: the workers hold the
//! other end, and go on saying that the agent lives until it closes. It does when the next agent serves and lets go of it,
//! or when the manager does, since the unit was stopped for good.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::{REPLACED, Supervisor};
use crate::systemd::store::Store;

/// What the service manager calls its end of the baton.
const BATON: &str = "callgate-handover";
/// How long connections that were just accepted may take to get what only a supervisor can give.
const SETTLE: Duration = Duration::from_secs(1);

/// The last supervisor's workers wait for this one's to serve, until it is dropped.
pub(super) struct Baton(Option<OwnedFd>);

impl Baton {
    /// Takes it up, if the last run left one.
    pub(super) fn take(store: &mut Store) -> Self {
        Self(store.take(BATON))
    }

    /// A worker serves.
    pub(super) fn done(self, store: &mut Store) {
        if let Some(end) = self.0 {
            drop(end);
            store.forget(BATON);
        }
    }
}

impl Supervisor {
    /// Whether another can go on where this one ends.
    pub(super) fn can_leave(&mut self) -> bool {
        self.crew.serving().is_some() && self.capture.store().is_complete()
    }

    /// Lets the workers go on alone. When this returns, nothing that was accepted needs this process.
    pub(super) async fn leave(&mut self) -> std::io::Result<()> {
        let (kept, given) = UnixStream::pair()?;
        self.capture.store().keep(BATON, kept.as_fd());
        self.records.leave(self.policy.digest());
        self.crew.leave(REPLACED, &given);
        drop((kept, given));
        let settled = async {
            while !self.crew.is_settled() {
                let happened = self.crew.next().await;
                self.heed(happened);
            }
        };
        if tokio::time::timeout(SETTLE, settled).await.is_err() {
            tracing::warn!("connections that were accepted and have said nothing yet may be refused");
        }
        self.crew.spare();
        Ok(())
    }
}
