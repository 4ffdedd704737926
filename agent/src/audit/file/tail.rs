//! The end of the log: what a writer that died left there, and which calls are recorded in it.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use crate::audit::record::RequestId;

/// What every record begins with. It can't stand within one: quotes in texts are escaped, and no other object of
/// the schema begins with this key.
const START: &[u8] = b"{\"v\":";
/// How long a writer that died may take to be gone.
const PATIENCE: Duration = Duration::from_secs(2);

/// Mends what a writer that died in the middle of write(2) left in the last `tail` bytes: a last line without a
/// newline is cut off, and a part of a line that another writer's record was appended to is overwritten with
/// spaces. The call's slot in the in-flight table is still taken, so nothing is lost. No file is nothing to mend.
///
/// # Errors
/// If the file can't be locked, read or changed.
pub fn mend(path: &Path, tail: u64) -> io::Result<()> {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(path);
    let file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    let end = cut_last_line(&file)?;
    blank_parts(&file, end.saturating_sub(tail), end)
}

/// Gives the length of the whole lines.
fn cut_last_line(file: &File) -> io::Result<u64> {
    super::lock(file, PATIENCE)?;
    let whole = file.metadata()?.len();
    let mut end = whole;
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
    file.unlock()?;
    Ok(end)
}

/// Needs no lock: whoever appends never touches what is there.
fn blank_parts(file: &File, start: u64, end: u64) -> io::Result<()> {
    let mut reader = BufReader::new(file);
    reader.seek(SeekFrom::Start(start))?;
    let mut lines = reader.take(end - start);
    let mut at = start;
    let mut line = Vec::new();
    loop {
        line.clear();
        let len = lines.read_until(b'\n', &mut line)?;
        if len == 0 {
            return Ok(());
        }
        let last = memchr::memmem::rfind(&line, START).unwrap_or(0);
        let part = line.get(..last).unwrap_or_default();
        // The first line of the tail may begin anywhere.
        let is_part = at != start || start == 0;
        if is_part && part.iter().any(|byte| *byte != b' ') {
            file.write_all_at(&vec![b' '; last], at)?;
        }
        at += len as u64;
    }
}

/// The ids in the last `tail` bytes of a log; none if there is no such file. For
/// [`recover`](crate::audit::inflight::recover): a record whose slot was not freed yet is among the last ones.
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
