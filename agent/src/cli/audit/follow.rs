//! Reads a log as it grows, and goes on in the next file when it is rotated.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

/// How often the file is looked at.
const POLL: Duration = Duration::from_millis(200);

/// Calls `each` with every whole line that comes after `reader`'s place; `part` is the line begun there. Ends only
/// with an error.
pub(super) fn follow(
    path: &Path,
    mut reader: BufReader<File>,
    mut part: Vec<u8>,
    mut each: impl FnMut(&[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    loop {
        // Asked first: what was appended before the rotation is then read below, before the new file is taken.
        let next = rotated_to(path, reader.get_ref())?;
        while reader.read_until(b'\n', &mut part)? > 0 && part.last() == Some(&b'\n') {
            each(&part)?;
            part.clear();
        }
        if let Some(file) = next {
            reader = BufReader::new(file);
            part.clear();
        } else {
            std::thread::sleep(POLL);
        }
    }
}

fn rotated_to(path: &Path, current: &File) -> anyhow::Result<Option<File>> {
    let current = current.metadata()?;
    match fs::metadata(path) {
        Ok(now) if (now.dev(), now.ino()) != (current.dev(), current.ino()) => Ok(Some(File::open(path)?)),
        // Between rename and creation there is none: it comes.
        Ok(_) | Err(_) => Ok(None),
    }
}
