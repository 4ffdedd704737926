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
//!
//! What a workload can have said at will is `debug`, or a few lines ([`crate::budget::Lines`]). What the libraries say of
//! what peers send them (a line for each odd frame, alert or answer) is left out but where `CALLGATE_LOG` asks for it.
//!
//! Under systemd lines go to the journal by standard error, whole, with their level before them (sd-daemon(3)): in fields
//! of its own it would show none of what a message is about, and the worker's sandbox has no socket for those.

use std::fmt;
use std::io;
use std::os::fd::AsFd;

use nix::sys::stat::fstat;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::{Layer as _, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// The variable that overrides the configured level.
pub const LEVEL_VARIABLE: &str = "CALLGATE_LOG";

/// What systemd says of standard error to the processes that it starts; the worker has to be told too.
pub const JOURNAL_VARIABLE: &str = "JOURNAL_STREAM";

/// Who reads the lines on standard error.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Destination {
    /// The journal, which knows the time and takes the level apart.
    Journal,
    /// Somebody else.
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
        std::env::var(JOURNAL_VARIABLE).is_ok_and(|stream| leads_to(&stream, io::stderr().as_fd()));
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

/// Sets logging up for this process; `CALLGATE_LOG` wins over `level`.
///
/// # Errors
/// If the level is malformed or logging is set up already.
pub fn init(level: &str, destination: Destination) -> Result<(), Error> {
    let text = std::env::var(LEVEL_VARIABLE).unwrap_or_else(|_unset| own(level));
    let filter = EnvFilter::try_new(&text).map_err(|source| Error::Level { text, source })?;
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(false);
    let lines = match destination {
        Destination::Journal => lines.event_format(ForJournal).boxed(),
        Destination::Stderr => lines.boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init()
        .or(Err(Error::Twice))
}

/// A message and its fields, behind the level as syslog counts it (`<4>`), without the time, which the journal notes itself.
struct ForJournal;

impl<S, N> FormatEvent<S, N> for ForJournal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut text = String::new();
        context.format_fields(Writer::new(&mut text), event)?;
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        // Each line is an entry of its own there; those that a value makes are not to be taken for the agent's.
        for (number, line) in text.lines().enumerate() {
            let indent = if number == 0 { "" } else { "    " };
            write!(out, "<{priority}>{indent}")?;
            for c in line.chars() {
                if c.is_control() && c != '\t' {
                    write!(out, "{}", c.escape_default())?;
                } else {
                    out.write_char(c)?;
                }
            }
            writeln!(out)?;
        }
        Ok(())
    }
}

/// The agent's own lines, and aya's, which reads nothing of workloads'.
fn own(level: &str) -> String {
    format!("off,callgate={level},aya={level}")
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _};
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_libraries_say_of_their_peers_is_left_out() {
        let mut written = tempfile::tempfile().unwrap();
        let layer = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .with_writer(Arc::new(written.try_clone().unwrap()));
        let filter = EnvFilter::try_new(own("info")).unwrap();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(filter).with(layer), || {
            tracing::warn!(target: "h2::proto::ping_pong", "recv PING ack that we never sent");
            tracing::error!(target: "hickory_resolver::name_server_pool", "rejecting response");
            tracing::warn!(target: "aya::bpf", "no BTF");
            tracing::info!("own");
            tracing::debug!("detail");
        });
        let mut text = String::new();
        written.rewind().unwrap();
        written.read_to_string(&mut text).unwrap();
        let lines: Vec<_> = text
            .lines()
            .map(|line| line.rsplit(": ").next().unwrap())
            .collect();
        assert_eq!(lines, ["no BTF", "own"], "{text}");
    }

    #[test]
    fn the_journal_gets_whole_lines_with_their_levels_whatever_is_in_a_value() {
        let mut written = tempfile::tempfile().unwrap();
        let layer = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .with_writer(Arc::new(written.try_clone().unwrap()))
            .event_format(ForJournal);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::error!(workload = "billing", "the workload's canary failed");
            tracing::warn!("a new policy is refused:\nline one\nline two");
            tracing::info!(name = %"a\n<0>forged\r\u{1b}[2J", "asked");
            tracing::debug!("detail");
        });
        let mut text = String::new();
        written.rewind().unwrap();
        written.read_to_string(&mut text).unwrap();
        let expected = "<3>the workload's canary failed workload=\"billing\"\n\
            <4>a new policy is refused:\n<4>    line one\n<4>    line two\n\
            <6>asked name=a\n<6>    <0>forged\\r\\u{1b}[2J\n\
            <7>detail\n";
        assert_eq!(text, expected);
    }

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
