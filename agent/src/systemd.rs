//! Talking to the service manager: readiness, status, watchdog, and the sockets that it keeps ([`store`]).
//!
//! Everything here does nothing where there is no service manager (`NOTIFY_SOCKET` is unset).

pub mod store;

use sd_notify::NotifyState;

/// Says that the agent serves.
pub fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Says that settings are being read again; [`ready`] ends it.
pub fn reloading() {
    let Ok(now) = NotifyState::monotonic_usec_now() else {
        return;
    };
    notify(&[NotifyState::Reloading, now]);
}

/// Changes the line that `systemctl status` shows.
pub fn status(line: &str) {
    notify(&[NotifyState::Status(line)]);
}

/// Says that the agent is on its way out.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Feeds the watchdog.
pub fn alive() {
    notify(&[NotifyState::Watchdog]);
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "can't reach the service manager");
    }
}
