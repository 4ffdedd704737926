//! Append-only JSON lines sink: writes, rotation, what a full disk does.
//!
//! The supervisor opens, rotates and mends the file; a worker gets a descriptor that can only append, and its
//! system call filter kills it for cutting the file. Whoever appends holds the file's lock (flock) while it does,
//! so a draining worker, its successor and the supervisor can share one file. Three things keep lines whole:
//!
//! - Room is reserved (fallocate) before a byte is written, so a full disk refuses a batch as a whole.
//! - Where a write ends short all the same (no fallocate on this file system, an I/O error), the supervisor cuts
//!   the part off again; a worker keeps the lock and completes the line before anything else is written.
//! - A writer that dies in the middle of write(2) leaves the rest to [`mend`], which the supervisor calls whenever
//!   a worker has ended, before it writes what that worker owed.
//!
//! A full disk stops the calls of all workloads, because none can be recorded. What keeps one workload from
//! filling it: size-bounded rotation (the log never takes more than `max_bytes * (keep + 1)`, so give it a file
//! system or project quota of that size), the bounded length of a record, and the per-workload quota of calls
//! under way. What does not: one workload's many calls push other workloads' older records out of the rotated
//! files sooner. Keep enough of them, or ship them elsewhere.

mod tail;

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::FallocateFlags;

use super::writer::{AppendError, Sink};

pub use tail::{ids, mend};

/// Room is reserved in pieces of this many bytes, so that not every batch asks the file system.
const ROOM: u64 = 256 * 1024;
/// How long a worker waits for another writer that holds the file's lock.
const WORKER_PATIENCE: Duration = Duration::from_secs(1);
/// The same for the supervisor, whose other work waits meanwhile.
const SUPERVISOR_PATIENCE: Duration = Duration::from_millis(50);

/// Opens the log for appending; a new one gets mode 0640, whatever the umask. Never follows a symbolic link.
///
/// # Errors
/// As open(2) gives them.
pub fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options
        .append(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
    match options.clone().create_new(true).mode(0o600).open(path) {
        Ok(new) => {
            new.set_permissions(Permissions::from_mode(0o640))?;
            Ok(new)
        }
        // Where it vanished in between, the caller's next look makes it.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => options.open(path),
        Err(error) => Err(error),
    }
}

/// The path of the `number`th oldest file, `audit.jsonl.1` being the youngest of them.
#[must_use]
pub fn rotated(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// If the log has reached `max_bytes`, makes it `.1` (and `.1` `.2`, up to `keep`, at least one). Says whether it
/// did: then a new one is to be opened.
///
/// # Errors
/// If a file can't be renamed. The log then still is where it was, or the next call goes on.
pub fn rotate(path: &Path, max_bytes: u64, keep: u32) -> io::Result<bool> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() < max_bytes => return Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
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
    Ok(true)
}

/// Waits for the file's lock, which nobody keeps for long.
fn lock(file: &File, patience: Duration) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(fs::TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(fs::TryLockError::WouldBlock) => {
                let message = "another process of the agent holds it in the middle of a line";
                return Err(io::Error::new(io::ErrorKind::WouldBlock, message));
            }
            Err(fs::TryLockError::Error(error)) => return Err(error),
        }
    }
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

/// Who appends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Writes {
    /// A worker: may not cut the file.
    Worker,
    /// The supervisor: may, and must not be kept waiting.
    Supervisor,
}

/// The sink that appends to a file.
#[derive(Debug)]
pub struct FileSink {
    file: File,
    who: Writes,
    sync: Sync,
    /// Bytes of the next line that are in the file already; the lock is held until the rest is.
    torn: usize,
    /// Up to this offset the file has its blocks.
    room: u64,
}

impl FileSink {
    /// Takes a file from [`open`].
    #[must_use]
    pub fn new(file: File, who: Writes, sync: Sync) -> Self {
        Self {
            file,
            who,
            sync,
            torn: 0,
            room: 0,
        }
    }

    /// Whether `path` still is this file: not renamed, not removed.
    ///
    /// # Errors
    /// If the path can't be looked at for another reason than that nothing is there.
    pub fn is_at(&self, path: &Path) -> io::Result<bool> {
        let own = self.file.metadata()?;
        match fs::symlink_metadata(path) {
            Ok(found) => Ok((found.dev(), found.ino()) == (own.dev(), own.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn lock(&self) -> io::Result<()> {
        if self.torn > 0 {
            return Ok(());
        }
        lock(
            &self.file,
            match self.who {
                Writes::Worker => WORKER_PATIENCE,
                Writes::Supervisor => SUPERVISOR_PATIENCE,
            },
        )
    }

    fn write(&mut self, lines: &[u8]) -> Result<(), AppendError> {
        let mut done = self.torn;
        let failed = |source| AppendError { written: 0, source };
        self.reserve(lines.len().saturating_sub(done)).map_err(failed)?;
        self.torn = 0;
        while let Some(rest) = lines.get(done..).filter(|rest| !rest.is_empty()) {
            match self.file.write(rest) {
                Ok(0) => return Err(self.cut_short(lines, done, io::ErrorKind::WriteZero.into())),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.cut_short(lines, done, error)),
            }
        }
        Ok(())
    }

    /// Sees that the file system has room for the whole batch.
    fn reserve(&mut self, len: usize) -> io::Result<()> {
        let metadata = self.file.metadata()?;
        if metadata.nlink() == 0 {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the file was deleted"));
        }
        let (end, len) = (metadata.len(), len as u64);
        // A file that is shorter than its room was cut by somebody, and lost its blocks with that.
        if end + len <= self.room && end + ROOM >= self.room {
            return Ok(());
        }
        let enough = match allocate(&self.file, end, len.max(ROOM)) {
            // Not so much, but perhaps as much as is needed.
            Err(Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG) => allocate(&self.file, end, len).map(|()| len),
            done => done.map(|()| len.max(ROOM)),
        };
        match enough {
            Ok(len) => self.room = end + len,
            // Here writes have to do without.
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::ENODEV | Errno::ESPIPE) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// A write that ended in the middle of a line.
    fn cut_short(&mut self, lines: &[u8], done: usize, source: io::Error) -> AppendError {
        let written = lines[..done]
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        let part = done - written;
        let cut = || {
            let len = self.file.metadata()?.len();
            self.file.set_len(len.saturating_sub(part as u64))
        };
        if part > 0 && (self.who == Writes::Worker || cut().is_err()) {
            self.torn = part;
        }
        AppendError { written, source }
    }
}

fn allocate(file: &File, offset: u64, len: u64) -> Result<(), Errno> {
    let offset = i64::try_from(offset).map_err(|_too_large| Errno::EFBIG)?;
    let len = i64::try_from(len).map_err(|_too_large| Errno::EFBIG)?;
    loop {
        match nix::fcntl::fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, len) {
            Err(Errno::EINTR) => {}
            done => return done,
        }
    }
}

impl Sink for FileSink {
    fn append(&mut self, lines: &[u8]) -> Result<(), AppendError> {
        let failed = |written| move |source| AppendError { written, source };
        if lines.is_empty() {
            return Ok(());
        }
        self.lock().map_err(failed(0))?;
        let result = self.write(lines);
        if self.torn > 0 {
            return result;
        }
        let unlocked = self.file.unlock();
        result?;
        unlocked.map_err(failed(lines.len()))?;
        if self.sync == Sync::EachBatch {
            self.file.sync_data().map_err(failed(lines.len()))?;
        }
        Ok(())
    }

    fn reopen(&mut self, file: File) {
        // Closing the old one lets go of its lock; a part of a line that is left there is mended.
        self.file = file;
        (self.torn, self.room) = (0, 0);
    }
}

#[cfg(test)]
mod tests;
