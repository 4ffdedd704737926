//! What the kernel programs say in words (aya-log): faults on cold paths, where no event can be made.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};

use super::Error;

/// The programs' constant for the level below which they say nothing.
pub(super) const LEVEL: &str = "AYA_LOG_LEVEL";

/// Lines kept at one look; a flood says nothing more, and `COUNTERS` has the number.
const MANY: usize = 64;

/// The value of [`LEVEL`] for this level; `None` silences the programs.
pub(super) fn number(level: Option<tracing::Level>) -> u8 {
    level.map_or(0, |level| match level {
        tracing::Level::ERROR => log::Level::Error as u8,
        tracing::Level::WARN => log::Level::Warn as u8,
        tracing::Level::INFO => log::Level::Info as u8,
        tracing::Level::DEBUG => log::Level::Debug as u8,
        tracing::Level::TRACE => log::Level::Trace as u8,
    })
}

/// The reading end.
pub(super) struct Faults {
    reader: EbpfLogger<Sink>,
    sink: Sink,
}

impl Faults {
    /// Takes the lines of these programs.
    pub(super) fn of(ebpf: &mut Ebpf) -> Result<Self, Error> {
        let sink = Sink::default();
        let reader = EbpfLogger::init_with_logger(ebpf, sink.clone()).map_err(|source| Error::Log {
            source: Box::new(source),
        })?;
        Ok(Self { reader, sink })
    }

    /// What was said since the last look.
    pub(super) fn take(&mut self) -> Vec<String> {
        self.reader.flush();
        std::mem::take(&mut *self.sink.lines())
    }
}

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<String>>>);

impl Sink {
    fn lines(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log for Sink {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let mut lines = self.lines();
        if lines.len() < MANY {
            lines.push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}
