//! Append-only JSON lines sink: writes, rotation, what a full disk does.
//!
//! The supervisor opens, rotates and repairs the file; a worker gets a descriptor that can only append. Whoever
//! appends holds the file's lock (flock) while it does, so a draining worker, its successor and the supervisor
//! can share one file: a line that the disk had no room for is cut off again before another can follow it.
//!
//! A full disk stops the calls of all workloads, because none can be recorded. What keeps one workload from
//! filling it: size-bounded rotation (the log never takes more than `max_bytes * (keep + 1)`, so give it a file
//! system or project quota of that size), the bounded length of a record, and the per-workload quota of calls
//! under way. What does not: one workload's many calls push other workloads' older records out of the rotated
//! files sooner. Keep enough of them, or ship them elsewhere.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::record::RequestId;
use super::writer::{AppendError, Sink};

/// Where the log is unless the configuration says otherwise.
pub const DEFAULT_PATH: &str = "/var/log/callgate/audit.jsonl";

/// Opens the log for appending; a new one gets mode 0640. Never follows a symbolic link.
///
/// # Errors
/// As open(2) gives them.
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(path)
}

/// Cuts off a last line that has no newline: what a writer that died in the middle of write(2) left. The call's
/// slot in the in-flight table is still taken, so nothing is lost.
///
/// # Errors
/// If the file can't be locked, read or cut.
pub fn repair(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(path)?;
    file.lock()?;
    let mut end = file.metadata()?.len();
    let whole = end;
    let mut block = [0; 4096];
    while end > 0 {
        let start = end.saturating_sub(block.len() as u64);
        let part = &mut block[..usize::try_from(end - start).map_err(io::Error::other)?];
        file.read_exact_at(part, start)?;
        if let Some(at) = part.iter().rposition(|byte| *byte == b'\n') {
            end = start + at as u64 + 1;
            break;
        }
        end = start;
    }
    if end < whole {
        file.set_len(end)?;
    }
    Ok(())
}

/// The ids in the last `tail` bytes of a log; none if there is no such file. For [`super::inflight::recover`]:
/// a record whose slot was not freed yet is among the last ones.
///
/// # Errors
/// If the file can't be read.
pub fn ids(path: &Path, tail: u64) -> io::Result<HashSet<RequestId>> {
    #[derive(Deserialize)]
    struct Head {
        id: RequestId,
    }
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(HashSet::new()),
        opened => opened?,
    };
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(tail)))?;
    let mut ids = HashSet::new();
    // The first line may be cut in half and the last may be torn: neither is a record.
    for line in BufReader::new(file.take(tail)).split(b'\n') {
        if let Ok(head) = serde_json::from_slice::<Head>(&line?) {
            ids.insert(head.id);
        }
    }
    Ok(ids)
}

/// The path of the `number`th oldest file, `audit.jsonl.1` being the youngest of them.
#[must_use]
pub fn rotated(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// If the log has reached `max_bytes`, makes it `.1` (and `.1` `.2`, up to `keep`, at least one) and opens a new
/// one, to be passed to [`super::Log::reopen`].
///
/// # Errors
/// If a file can't be renamed or opened. The log then still is where it was, or the next call goes on.
pub fn rotate(path: &Path, max_bytes: u64, keep: u32) -> io::Result<Option<File>> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() < max_bytes => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return open(path).map(Some),
        Ok(_) => {}
        Err(error) => return Err(error),
    }
    for number in (1..keep.max(1)).rev() {
        match fs::rename(rotated(path, number), rotated(path, number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    fs::rename(path, rotated(path, 1))?;
    open(path).map(Some)
}

/// What is done against a power cut. A killed process loses nothing either way.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Sync {
    /// The kernel writes back in its own time.
    #[default]
    Never,
    /// fdatasync(2) after each batch, before the slots are freed.
    EachBatch,
}

/// The sink that appends to a file.
#[derive(Debug)]
pub struct FileSink {
    file: File,
    sync: Sync,
    /// Bytes of the next line that are in the file already and could not be cut off.
    torn: usize,
}

impl FileSink {
    /// Takes a file from [`open`].
    #[must_use]
    pub fn new(file: File, sync: Sync) -> Self {
        Self {
            file,
            sync,
            torn: 0,
        }
    }

    fn write(&mut self, lines: &[u8]) -> Result<(), AppendError> {
        let mut done = std::mem::take(&mut self.torn);
        while let Some(rest) = lines.get(done..).filter(|rest| !rest.is_empty()) {
            match self.file.write(rest) {
                Ok(0) => return Err(self.cut_back(lines, done, io::ErrorKind::WriteZero.into())),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.cut_back(lines, done, error)),
            }
        }
        Ok(())
    }

    /// Takes the part of a line off again. Where even that fails (an append-only inode) the line is completed
    /// next time.
    fn cut_back(&mut self, lines: &[u8], done: usize, source: io::Error) -> AppendError {
        let written = lines[..done].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let part = done - written;
        if part > 0 {
            let cut = self.file.metadata().and_then(|meta| self.file.set_len(meta.len() - part as u64));
            if cut.is_err() {
                self.torn = part;
            }
        }
        AppendError { written, source }
    }
}

impl Sink for FileSink {
    fn append(&mut self, lines: &[u8]) -> Result<(), AppendError> {
        let failed = |source| AppendError { written: 0, source };
        self.file.lock().map_err(failed)?;
        let result = self.write(lines);
        let unlocked = self.file.unlock();
        result?;
        unlocked.map_err(|source| AppendError {
            written: lines.len(),
            source,
        })?;
        if self.sync == Sync::EachBatch {
            self.file.sync_data().map_err(|source| AppendError {
                written: lines.len(),
                source,
            })?;
        }
        Ok(())
    }

    fn reopen(&mut self, file: File) {
        self.file = file;
        self.torn = 0;
    }
}

#[cfg(test)]
mod tests;
