//! What a service manager or an operator tells the agent by a signal.

use std::path::Path;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::error::{Error, io};

/// The signals that are obeyed. One that comes before it is asked for waits; the same one twice is one.
pub(super) struct Signals {
    /// SIGTERM: stop.
    pub(super) terminate: Signal,
    /// SIGINT: stop.
    pub(super) interrupt: Signal,
    /// SIGHUP: reload.
    pub(super) hangup: Signal,
    /// SIGUSR2: replace the worker.
    pub(super) replace: Signal,
}

impl Signals {
    /// From here on none of them ends the process.
    ///
    /// # Errors
    /// If the kernel refuses, which it has no reason to.
    pub(super) fn catch() -> Result<Self, Error> {
        let catch = |kind| signal(kind).map_err(io("catch", Path::new("signals")));
        Ok(Self {
            terminate: catch(SignalKind::terminate())?,
            interrupt: catch(SignalKind::interrupt())?,
            hangup: catch(SignalKind::hangup())?,
            replace: catch(SignalKind::user_defined2())?,
        })
    }
}
