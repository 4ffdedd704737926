//! Tracing set-up and the meaning of the levels.
//!
//! | level | means | who acts |
//! |---|---|---|
//! | error | something that must hold does not: calls are refused, a pin is gone, a worker died | the operator, now |
//! | warn | it goes on, but not as configured: a reload was refused, a credential is unavailable | the operator, soon |
//! | info | a change of state: started, policy generation, workload armed, worker replaced | nobody |
//! | debug | one line a connection | whoever looks for a fault |
//! | trace | inside a connection | developers |
//!
//! Calls are in the audit log, not here. No level ever shows a credential's value, a header or a body.

use std::io;
use std::os::fd::AsFd;

use nix::sys::stat::fstat;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// The variable that overrides the configured level.
pub const LEVEL_VARIABLE: &str = "CALLGATE_LOG";

/// Where log lines go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Destination {
    /// The journal, with fields.
    Journal,
    /// Standard error. The worker always: its sandbox has no socket for the journal, and standard error leads there.
    Stderr,
}

/// Logging could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The level is no filter.
    #[error("the log level {text:?} is malformed: {source} (try \"info\" or \"info,callgate::proxy=debug\")")]
    Level {
        /// What was given.
        text: String,
        /// Why.
        source: tracing_subscriber::filter::ParseError,
    },
    /// It was set up before.
    #[error("logging is already set up")]
    Twice,
}

/// Picks the journal if standard error is connected to it (sd-daemon(3), `JOURNAL_STREAM`).
#[must_use]
pub fn destination() -> Destination {
    let connected =
        std::env::var("JOURNAL_STREAM").is_ok_and(|stream| leads_to(&stream, io::stderr().as_fd()));
    if connected {
        Destination::Journal
    } else {
        Destination::Stderr
    }
}

/// `JOURNAL_STREAM` is "device:inode" of the stream that the service manager connected.
fn leads_to(stream: &str, fd: impl AsFd) -> bool {
    let Some((device, inode)) = stream.split_once(':') else {
        return false;
    };
    let (Ok(device), Ok(inode)) = (device.parse::<u64>(), inode.parse::<u64>()) else {
        return false;
    };
    fstat(fd).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (device, inode))
}

/// Sets logging up for this process; `CALLGATE_LOG` wins over `level`. Falls back to standard error if the
/// journal's socket can't be reached.
///
/// # Errors
/// If the level is malformed or logging is set up already.
pub fn init(level: &str, destination: Destination) -> Result<(), Error> {
    let text = std::env::var(LEVEL_VARIABLE).unwrap_or_else(|_unset| level.to_owned());
    let filter = EnvFilter::try_new(&text).map_err(|source| Error::Level { text, source })?;
    let journal = match destination {
        Destination::Journal => tracing_journald::layer().ok(),
        Destination::Stderr => None,
    };
    let stderr = journal.is_none().then(|| {
        tracing_subscriber::fmt::layer()
            .with_writer(io::stderr)
            .with_ansi(false)
    });
    tracing_subscriber::registry()
        .with(filter)
        .with(journal)
        .with(stderr)
        .try_init()
        .or(Err(Error::Twice))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_is_recognised_by_device_and_inode() {
        let file = tempfile::tempfile().unwrap();
        let stat = fstat(&file).unwrap();
        assert!(leads_to(&format!("{}:{}", stat.st_dev, stat.st_ino), &file));
        for other in [
            "",
            "1",
            "1:2",
            "a:b",
            &format!("{}:{}", stat.st_dev, stat.st_ino + 1),
        ] {
            assert!(!leads_to(other, &file), "{other:?}");
        }
    }
}
