//! The supervisor's part of the audit log: opening and rotating the file, the in-flight tables, and records of
//! what the kernel decided.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::audit::record::{self, Caller, Decision, PolicyVersion, Protocol, Record, Timestamp};
use crate::audit::{Kind, Outcome, RequestId, Sink as _, file, inflight};
use crate::channel::worker::StartDescriptors;
use crate::config::Config;
use crate::ebpf::{Origin, Reason, Report, WorkerFds};
use crate::identity::{Cgroup, Sha256};
use crate::policy::Policy;

use super::capture::Capture;

/// Calls that one workload may have under way.
pub(super) const SLOTS_PER_WORKLOAD: u32 = 2048;
/// Calls of all workloads together.
const SLOTS: u32 = 8192;
/// How much of the audit file's end is searched for records that a table also holds, in bytes.
const TAIL: u64 = 64 << 20;

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
    table: u64,
}

impl Records {
    /// Opens the file, and turns what the last run left in its tables into records.
    pub(super) fn open(config: &Config) -> Result<Self, Error> {
        let path = config.audit.file.clone();
        if path.exists() {
            file::repair(&path).map_err(at("repair", &path))?;
        }
        let opened = file::open(&path).map_err(at("open", &path))?;
        let mut records = Self {
            path,
            max_size: config.audit.max_size,
            keep: config.audit.keep,
            sink: file::FileSink::new(opened, file::Sync::default()),
            state_dir: config.state_dir.clone(),
            table: 0,
        };
        for left in records.left_over()? {
            records.recover_file(&left)?;
        }
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

    /// The next worker gets a table of its own; gives the number of the last one's.
    pub(super) fn next_table(&mut self) -> Result<u64, Error> {
        let last = self.table;
        self.table += 1;
        Ok(last)
    }

    /// Turns what a worker that ended had under way into records.
    pub(super) fn recover(&mut self, table: u64) -> Result<(), Error> {
        let path = self.table_path(table);
        if path.exists() {
            self.recover_file(&path)
        } else {
            Ok(())
        }
    }

    fn table_path(&self, table: u64) -> PathBuf {
        self.state_dir
            .join(format!("inflight-{}-{table}", std::process::id()))
    }

    fn recover_file(&mut self, path: &Path) -> Result<(), Error> {
        let opened = File::open(path).map_err(at("open", path))?;
        let written = file::ids(&self.path, TAIL).map_err(at("read", &self.path))?;
        match inflight::recover(&opened, &written) {
            Ok(records) => {
                let count = records.len();
                let mut all_written = true;
                for record in records {
                    all_written &= self.append(&record);
                }
                if !all_written {
                    tracing::error!(path = %path.display(), "calls that a worker had under way can't be recorded now; the agent's next start tries again");
                    return Ok(());
                }
                if count > 0 {
                    tracing::warn!(
                        count,
                        "calls that a worker had under way when it ended are recorded as aborted"
                    );
                }
            }
            // A table that was being made when the agent died has no call in it.
            Err(error) => tracing::warn!(%error, path = %path.display(), "an in-flight table can't be read"),
        }
        std::fs::remove_file(path).map_err(at("remove", path))
    }

    /// What a new worker works with.
    pub(super) fn descriptors(&mut self, kernel: WorkerFds) -> Result<StartDescriptors, Error> {
        let path = self.table_path(self.table);
        let table = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .map_err(at("make", &path))?;
        inflight::create(&table, SLOTS).map_err(|source| Error::Table { path, source })?;
        let audit = file::open(&self.path).map_err(at("open", &self.path))?;
        Ok(StartDescriptors {
            origins: kernel.origins,
            liveness: kernel.liveness,
            audit: audit.into(),
            inflight: table.into(),
        })
    }

    /// Starts a new file if this one is full: the worker's descriptor of it.
    pub(super) fn rotate(&mut self) -> Result<Option<OwnedFd>, Error> {
        let Some(fresh) =
            file::rotate(&self.path, self.max_size, self.keep).map_err(at("rotate", &self.path))?
        else {
            return Ok(None);
        };
        let again = file::open(&self.path).map_err(at("open", &self.path))?;
        self.sink = file::FileSink::new(again, file::Sync::default());
        Ok(Some(fresh.into()))
    }

    /// Records what the kernel refused, or let pass by a direct rule.
    pub(super) fn kernel(&mut self, reports: &[Report], capture: &Capture, policy: &Policy) {
        let version = Arc::new(PolicyVersion {
            digest: digest(policy.digest()),
            generation: 0,
        });
        for report in reports {
            let mut record = blank(kind(report.reason), caller(&report.origin, capture));
            record.policy = Some(Arc::clone(&version));
            record.original_destination = Some(report.origin.destination());
            record.protocol = protocol(report.origin.protocol());
            record.count = Some(u64::from(report.suppressed) + 1);
            if report.reason == Reason::Direct {
                record.decision = Some(Decision::Allow);
                record.outcome = Outcome::Completed;
            } else {
                record.decision = Some(Decision::Deny);
                record.outcome = Outcome::Denied;
                record.reason = Some(report.reason.as_str().into());
            }
            self.append(&record);
        }
    }

    /// Somebody opened the perimeter: that too is on record.
    pub(super) fn perimeter_broken(&mut self) {
        let mut record = blank(Kind::KernelRefusal, Caller::default());
        record.outcome = Outcome::Failed;
        record.error = Some(record::Error {
            source: record::Source::Internal,
            kind: "perimeter".into(),
            message: "a kernel program was detached or unpinned".into(),
        });
        self.append(&record);
    }

    /// Says whether it is written; why not is logged.
    fn append(&mut self, record: &Record) -> bool {
        let mut line = Vec::new();
        if let Err(error) = record.write_line(&mut line) {
            tracing::error!(%error, "a record can't be put into words");
            return false;
        }
        if let Err(error) = self.sink.append(&line) {
            tracing::error!(error = %error.source, kind = ?record.kind, "a record of the supervisor could not be written");
            return false;
        }
        true
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
        Arc::new(caller),
    )
}

fn digest(digest: Sha256) -> Arc<str> {
    digest.to_string().into()
}

fn kind(reason: Reason) -> Kind {
    if reason == Reason::Direct {
        Kind::Direct
    } else {
        Kind::KernelRefusal
    }
}

fn protocol(number: u8) -> Option<Protocol> {
    match number {
        6 => Some(Protocol::Tcp),
        17 => Some(Protocol::Udp),
        _ => None,
    }
}

fn caller(origin: &Origin, capture: &Capture) -> Caller {
    let workload = capture.name_of(origin.workload()).cloned();
    if !origin.has_caller() {
        return Caller {
            workload,
            ..Caller::default()
        };
    }
    Caller {
        workload,
        cgroup: Some(Cgroup {
            id: origin.cgroup_id(),
            path: None,
        }),
        pid: origin.tgid(),
        start_time: origin.start_time(),
        uid: Some(origin.uid()),
        gid: Some(origin.gid()),
        comm: Some(String::from_utf8_lossy(origin.comm()).into()),
        exe: origin.exe().map(|(device, inode)| record::Exe {
            path: None,
            device,
            inode,
            sha256: None,
        }),
        ..Caller::default()
    }
}
