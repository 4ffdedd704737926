//! The supervisor's part of the audit log: opening and rotating the file, the in-flight tables, and records of
//! what the kernel decided.

mod kernel;

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{CWD, RenameFlags};

use crate::audit::record::{self, Caller, Record, Timestamp};
use crate::audit::{AppendError, Kind, Outcome, RequestId, Sink as _, file, inflight};
use crate::channel::worker::StartDescriptors;
use crate::config::Config;
use crate::ebpf::WorkerFds;
use crate::identity::{Sha256, WorkloadName};

use super::left;

/// Calls of all workloads together.
const SLOTS: u32 = 8192;
/// How much of the audit file's end is searched for records that a table also holds, in bytes.
const TAIL: u64 = 64 << 20;
/// Records of the supervisor that wait for room on the disk, in bytes.
const MAX_WAITING: usize = 1 << 20;
/// For so long somebody who holds the audit file's lock may just not have had a processor.
const SLOW: Duration = Duration::from_secs(1);
/// Tables under one process id and number.
const MAX_TABLES: u32 = 10_000;

/// Why records can't be kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file.
    #[error("can't {what} {path}: {source}")]
    File {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The in-flight table.
    #[error("the in-flight table {path} can't be used: {source}")]
    Table {
        /// The file.
        path: PathBuf,
        /// Why.
        source: inflight::Error,
    },
}

/// The audit file and the tables beside it.
pub(super) struct Records {
    path: PathBuf,
    max_size: u64,
    keep: u32,
    sink: file::FileSink,
    state_dir: PathBuf,
    opened: Instant,
    /// Tables that are still to become records: their worker is not gone yet, or the disk is full.
    owed: Vec<PathBuf>,
    /// Somebody died, perhaps in the middle of a line.
    torn: bool,
    /// The tables of living workers, by their numbers.
    tables: HashMap<u64, PathBuf>,
    /// Lines that could not be written yet, [`MAX_WAITING`] bytes at most.
    waiting: Vec<u8>,
    /// Records that there was no room for even there.
    lost: u64,
    failure: Option<Failure>,
    floods: kernel::Floods,
    looking: kernel::Looking,
}

/// Why lines wait.
struct Failure {
    since: Instant,
    why: String,
    /// Whether it counts: a worker that was interrupted while it held the file's lock has only been slow.
    counts: bool,
}

impl Records {
    /// Opens the file, and turns what the last run left in its tables into records.
    pub(super) fn open(config: &Config) -> Result<Self, Error> {
        let path = config.audit.file.clone();
        let opened = file::open(&path).map_err(at("open", &path))?;
        let mut records = Self {
            path,
            max_size: config.audit.max_size,
            keep: config.audit.keep,
            sink: sink(opened),
            state_dir: config.state_dir.clone(),
            opened: Instant::now(),
            owed: Vec::new(),
            torn: true,
            tables: HashMap::new(),
            waiting: Vec::new(),
            lost: 0,
            failure: None,
            floods: kernel::Floods::default(),
            looking: kernel::Looking::default(),
        };
        records.owed = records.left_over()?;
        records.settle()?;
        Ok(records)
    }

    fn left_over(&self) -> Result<Vec<PathBuf>, Error> {
        let entries = std::fs::read_dir(&self.state_dir).map_err(at("list", &self.state_dir))?;
        let is_table = |path: &PathBuf| {
            path.file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| name.starts_with("inflight-"))
        };
        Ok(entries
            .flatten()
            .map(|entry| entry.path())
            .filter(is_table)
            .collect())
    }

    /// Turns what the worker of this number had under way when it ended into records; later
    /// ([`Records::settle`]) what can't be now.
    pub(super) fn recover(&mut self, worker: u64, ended_well: bool) {
        self.torn |= !ended_well;
        let table = self.tables.remove(&worker);
        self.owed.extend(table.filter(|path| path.exists()));
        if let Err(error) = self.settle() {
            tracing::error!(%error, "calls of a worker that ended can't be recorded now; tried again until they can");
        }
    }

    /// Writes what is owed, as far as it can be written now.
    pub(super) fn settle(&mut self) -> Result<(), Error> {
        self.write_waiting();
        if self.owed.is_empty() || self.failure.is_some() {
            return Ok(());
        }
        if self.torn {
            file::mend(&self.path, TAIL).map_err(at("mend", &self.path))?;
            self.torn = false;
        }
        let mut fault = Ok(());
        for path in std::mem::take(&mut self.owed) {
            match self.recover_file(&path) {
                Ok(true) => {}
                Ok(false) => self.owed.push(path),
                Err(error) => {
                    self.owed.push(path);
                    fault = Err(error);
                }
            }
        }
        fault
    }

    /// Names the tables of workers that go on alone after the policy in force: see [`left`].
    pub(super) fn leave(&mut self, policy: Sha256) {
        let now = left::now();
        for path in self.tables.values() {
            let named = left::named(path, now, policy);
            // Without the name the worker is ended by the next supervisor: never too late.
            if let Err(error) = rustix::fs::renameat_with(CWD, path, CWD, &named, RenameFlags::NOREPLACE) {
                tracing::warn!(%error, path = %path.display(), "an in-flight table can't be renamed");
            }
        }
    }

    /// The tables of workers that an earlier supervisor left, and that live.
    pub(super) fn left(&self) -> Vec<&Path> {
        let owed = self.owed.iter().map(PathBuf::as_path);
        owed.filter(|path| left::is_held(path)).collect()
    }

    /// Ends those of them that were left under another policy than this.
    pub(super) fn end_left(&self, policy: Sha256) {
        for table in self.left() {
            if left::is_under(table, policy) {
                tracing::info!(table = %table.display(), "a worker of the last agent ends its calls beside this one's");
            } else {
                end_left(
                    table,
                    "the policy is another one now, or it was not left in order",
                );
            }
        }
    }

    /// Ends those that should have ended by themselves. Where the name tells no time, an agent before this one's version
    /// left it, and it counts from this one's start.
    pub(super) fn end_overdue(&self) {
        let now = left::now();
        let in_all = self.opened.elapsed() > left::LONGEST;
        let overdue = |table: &&PathBuf| left::is_overdue(table, now).unwrap_or(in_all);
        let tables = self.owed.iter().filter(overdue);
        for table in tables.filter(|table| left::is_held(table)) {
            end_left(table, "its time is over");
        }
    }

    /// Why the supervisor's own records can't be written at present.
    pub(super) fn failure(&self) -> Option<&str> {
        let counts = self.failure.as_ref().filter(|failure| failure.counts);
        counts.map(|failure| failure.why.as_str())
    }

    /// A table of its own for the worker of this number. One that is there already, of an agent that had the same
    /// process id, is still owed: it is left alone.
    fn new_table(&mut self, worker: u64) -> Result<(File, PathBuf), Error> {
        let base = format!("inflight-{}-{worker}", std::process::id());
        let (table, path) = new_file(&self.state_dir, &base)?;
        self.tables.insert(worker, path.clone());
        Ok((table, path))
    }

    /// Says whether it is done.
    fn recover_file(&mut self, path: &Path) -> Result<bool, Error> {
        let opened = File::open(path).map_err(at("open", path))?;
        // The worker's descriptor holds the lock for as long as the worker lives: until then the calls are its own.
        match opened.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Ok(false),
            Err(std::fs::TryLockError::Error(error)) => return Err(at("lock", path)(error)),
        }
        let owed = self.owed_by(&opened, path)?;
        let mut lines = Vec::new();
        for record in &owed {
            append_line(record, &mut lines);
        }
        if let Err(error) = self.sink.append(&lines) {
            tracing::error!(error = %error.source, path = %path.display(), "calls that a worker had under way can't be recorded now; tried again until they can");
            return Ok(false);
        }
        if !owed.is_empty() {
            let count = owed.len();
            tracing::warn!(
                count,
                "calls that a worker had under way when it ended are recorded as aborted"
            );
        }
        std::fs::remove_file(path).map_err(at("remove", path))?;
        Ok(true)
    }

    /// What a table of a dead worker holds that is not in the log. A worker that drained leaves none, and the log
    /// need not be read for it.
    fn owed_by(&self, table: &File, path: &Path) -> Result<Vec<Record>, Error> {
        let held = match inflight::recover(table, &HashSet::new()) {
            Ok(held) => held,
            // A table that was being made when the agent died has no call in it.
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "an in-flight table can't be read");
                Vec::new()
            }
        };
        if held.is_empty() {
            return Ok(held);
        }
        let mut written = file::ids(&self.path, TAIL).map_err(at("read", &self.path))?;
        let before = file::rotated(&self.path, 1);
        written.extend(file::ids(&before, TAIL).map_err(at("read", &before))?);
        Ok(held
            .into_iter()
            .filter(|record| !written.contains(&record.id))
            .collect())
    }

    /// What the worker of this number works with: a table of its own.
    pub(super) fn descriptors(&mut self, worker: u64, kernel: WorkerFds) -> Result<StartDescriptors, Error> {
        let (table, path) = self.new_table(worker)?;
        table
            .try_lock()
            .map_err(|error| at("lock", &path)(error.into()))?;
        inflight::create(&table, SLOTS).map_err(|source| Error::Table { path, source })?;
        let audit = file::open(&self.path).map_err(at("open", &self.path))?;
        Ok(StartDescriptors {
            origins: kernel.origins,
            liveness: kernel.liveness,
            audit: audit.into(),
            inflight: table.into(),
        })
    }

    /// Starts a new file if this one is full, was renamed or was removed, and says so: workers need it too.
    pub(super) fn rotate(&mut self) -> Result<bool, Error> {
        let full = file::rotate(&self.path, self.max_size, self.keep).map_err(at("rotate", &self.path))?;
        if !full && self.sink.is_at(&self.path).map_err(at("look at", &self.path))? {
            return Ok(false);
        }
        let opened = file::open(&self.path).map_err(at("open", &self.path))?;
        self.sink.reopen(opened);
        Ok(true)
    }

    /// The audit file for a worker.
    pub(super) fn file(&self) -> Result<OwnedFd, Error> {
        Ok(file::open(&self.path).map_err(at("open", &self.path))?.into())
    }

    /// Somebody opened the perimeter: that too is on record.
    pub(super) fn perimeter_broken(&mut self, what: &str) {
        self.finding(Caller::default(), "perimeter", what);
    }

    /// A connect from inside the workload did not come to the agent as it must.
    pub(super) fn canary_failed(&mut self, workload: &WorkloadName, what: &str) {
        let caller = Caller {
            workload: Some(workload.clone()),
            ..Caller::default()
        };
        self.finding(caller, "canary", what);
    }

    fn finding(&mut self, caller: Caller, kind: &'static str, what: &str) {
        let mut record = blank(Kind::KernelRefusal, caller);
        record.outcome = Outcome::Failed;
        record.error = Some(record::Error {
            source: record::Source::Internal,
            kind: kind.into(),
            message: what.into(),
        });
        self.append(&record);
    }

    /// Writes a record of the supervisor's own, or keeps it until it can be written.
    fn append(&mut self, record: &Record) {
        let mut line = Vec::new();
        append_line(record, &mut line);
        if self.waiting.len() + line.len() > MAX_WAITING {
            self.lost += 1;
            return;
        }
        self.waiting.append(&mut line);
        if self.failure.is_none() {
            self.write_waiting();
        }
    }

    fn write_waiting(&mut self) {
        if self.lost > 0 && self.waiting.len() < MAX_WAITING / 2 {
            let mut record = blank(Kind::Unrecorded, Caller::default());
            record.outcome = Outcome::Denied;
            record.count = Some(std::mem::take(&mut self.lost));
            append_line(&record, &mut self.waiting);
        }
        match self.sink.append(&self.waiting) {
            Ok(()) => {
                self.waiting.clear();
                if self.failure.take().is_some_and(|failure| failure.counts) {
                    tracing::info!("the supervisor's records can be written again");
                }
            }
            Err(error) => {
                self.waiting.drain(..error.written);
                self.failed(&error);
            }
        }
    }

    fn failed(&mut self, error: &AppendError) {
        let told = self.failure().is_some();
        let since = self
            .failure
            .as_ref()
            .map_or_else(Instant::now, |before| before.since);
        let counts = told || error.source.kind() != ErrorKind::WouldBlock || since.elapsed() >= SLOW;
        if counts && !told {
            tracing::error!(error = %error.source, "records of the supervisor can't be written; they are kept until they can");
        }
        self.failure = Some(Failure {
            since,
            why: error.to_string(),
            counts,
        });
    }
}

fn end_left(table: &Path, why: &str) {
    match left::end(table) {
        Ok(_killed) => tracing::warn!(why, "a worker of the last agent is ended with its calls"),
        Err(error) => {
            tracing::error!(%error, why, table = %table.display(), "a worker of the last agent can't be ended");
        }
    }
}

/// A file that was not there: `base`, or that with the first number that is free.
fn new_file(dir: &Path, base: &str) -> Result<(File, PathBuf), Error> {
    let mut path = dir.join(base);
    for number in 1..=MAX_TABLES {
        let made = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        match made {
            // Another run's table; what is no table is nothing that belongs here.
            Err(error) if error.kind() == ErrorKind::AlreadyExists && path.is_file() => {
                path = dir.join(format!("{base}.{number}"));
            }
            made => return Ok((made.map_err(at("make", &path))?, path)),
        }
    }
    Err(at("make", &path)(ErrorKind::AlreadyExists.into()))
}

fn sink(file: File) -> file::FileSink {
    file::FileSink::new(file, file::Writes::Supervisor, file::Sync::default())
}

fn append_line(record: &Record, lines: &mut Vec<u8>) {
    let whole = lines.len();
    if let Err(error) = record.write_line(lines) {
        tracing::error!(%error, "a record can't be put into words");
        lines.truncate(whole);
    }
}

fn at(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::File { what, path, source }
}

fn blank(kind: Kind, caller: Caller) -> Record {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = Timestamp::from_unix_micros(u64::try_from(now.as_micros()).unwrap_or(0));
    Record::new(
        kind,
        RequestId::from_bytes(*uuid::Uuid::now_v7().as_bytes()),
        time,
        caller.into(),
    )
}

fn digest(digest: Sha256) -> Arc<str> {
    digest.to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_is_still_owed_is_not_cut() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("inflight-1-1"), "calls").unwrap();
        std::fs::write(dir.path().join("inflight-1-1.1"), "calls").unwrap();
        let (_, path) = new_file(dir.path(), "inflight-1-1").unwrap();
        assert_eq!(path, dir.path().join("inflight-1-1.2"));
        assert_eq!(std::fs::read(dir.path().join("inflight-1-1")).unwrap(), b"calls");
    }

    #[test]
    fn a_lock_that_another_holds_for_a_moment_is_no_failure() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.audit.file = dir.path().join("audit.jsonl");
        config.state_dir = dir.path().to_owned();
        let mut records = Records::open(&config).unwrap();
        let other = File::open(&config.audit.file).unwrap();
        other.lock().unwrap();
        records.perimeter_broken("a test");
        assert_eq!(records.failure(), None);
        assert!(!records.waiting.is_empty());
        records.failure.as_mut().unwrap().since -= SLOW;
        records.settle().unwrap();
        assert!(
            records
                .failure()
                .is_some_and(|why| why.contains("another process"))
        );
        other.unlock().unwrap();
        records.settle().unwrap();
        assert_eq!(records.failure(), None);
        assert!(
            std::fs::read_to_string(&config.audit.file)
                .unwrap()
                .contains("a test")
        );
    }
}
