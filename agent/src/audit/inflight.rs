//! The table of calls under way, in a shared mapping that outlives the process.
//!
//! A preallocated file: one header page, then slots of [`SLOT`] bytes. A slot's state word is written last, so
//! whatever moment a process is killed at, a slot is free, holds a whole opening, or holds a whole final record.
//! (Scope: death of the process. What a power cut leaves is decoded as far as it can be.)
//!
//! The worker maps the file from a descriptor that it inherited; the supervisor reads it with `pread` and takes
//! nothing in it for granted, for the worker is not trusted with the supervisor's memory.

#![expect(
    unsafe_code,
    reason = "writing through a shared mapping, by two blocks that are both bounded by `offset`, and unmapping it"
)]

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use memmap2::{MmapOptions, MmapRaw, UncheckedAdvice};

use super::record::{Caller, Error as RecordError, Kind, Outcome, Record, RequestId, Source, Timestamp};

/// The size of one slot, in bytes.
pub const SLOT: usize = 4096;
/// The most slots that a table may have (1 GiB of file).
pub const MAX_SLOTS: u32 = 262_144;

const HEADER: usize = 4096;
const MAGIC: &[u8; 16] = b"callgate inflt 1";
const FREE: u32 = 0;
const OPEN: u32 = 1;
const CLOSED: u32 = 2;

/// Offsets within a slot: state word, length of the opening, length of the final record, id, the two texts.
const OPEN_LEN: usize = 4;
const CLOSED_LEN: usize = 8;
const ID: usize = 16;
const OPEN_TEXT: usize = 32;
const CLOSED_TEXT: usize = 2048;

/// The longest opening, in bytes.
pub(super) const MAX_OPEN: usize = CLOSED_TEXT - OPEN_TEXT;
/// The longest final record, in bytes.
pub(super) const MAX_CLOSED: usize = SLOT - CLOSED_TEXT;

/// Why there is no table.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk has no room for it, or the file can't be used.
    #[error(
        "can't use the in-flight table of the audit log: {source}; free space or move it with `audit.inflight`"
    )]
    Io {
        /// What the system said.
        source: io::Error,
    },
    /// The file is something else.
    #[error("the in-flight file of the audit log has another form; remove it, or give another path")]
    Form,
    /// Zero slots, or too many.
    #[error("the in-flight table can have 1 to {MAX_SLOTS} slots, not {slots}")]
    Slots {
        /// What was asked for.
        slots: u32,
    },
}

impl From<io::Error> for Error {
    fn from(source: io::Error) -> Self {
        Self::Io { source }
    }
}

/// Makes `file` an empty table of `slots` slots, with its disk blocks reserved. Recover from it first.
///
/// # Errors
/// If the number is out of range or the file system has no room.
pub fn create(file: &File, slots: u32) -> Result<(), Error> {
    if slots == 0 || slots > MAX_SLOTS {
        return Err(Error::Slots { slots });
    }
    file.set_len(0)?;
    let len = i64::try_from(HEADER + slots as usize * SLOT).map_err(|_too_long| Error::Slots { slots })?;
    nix::fcntl::posix_fallocate(file, 0, len).map_err(io::Error::from)?;
    let mut header = [0; 20];
    header[..16].copy_from_slice(MAGIC);
    header[16..].copy_from_slice(&slots.to_le_bytes());
    file.write_all_at(&header, 0)?;
    Ok(())
}

fn slots_of(file: &File) -> Result<u32, Error> {
    let len = file.metadata()?.len();
    let mut header = [0; 20];
    if len < HEADER as u64 {
        return Err(Error::Form);
    }
    file.read_exact_at(&mut header, 0)?;
    let mut count = [0; 4];
    count.copy_from_slice(&header[16..]);
    let slots = u32::from_le_bytes(count);
    let fits = len == HEADER as u64 + u64::from(slots) * SLOT as u64;
    if &header[..16] != MAGIC || slots == 0 || slots > MAX_SLOTS || !fits {
        return Err(Error::Form);
    }
    Ok(slots)
}

/// The worker's view of the table. Nobody may shrink the file while it is mapped; only root can.
#[derive(Debug)]
pub struct Table {
    map: MmapRaw,
    /// The lock is this descriptor's. On overlayfs a mapping does not keep it: it is of the file below.
    _lock: File,
    slots: u32,
}

impl Table {
    /// Maps a file that [`create`] made.
    ///
    /// # Errors
    /// If the file is none, or can't be mapped.
    pub fn map(file: File) -> Result<Self, Error> {
        let slots = slots_of(&file)?;
        let map = MmapOptions::new()
            .len(HEADER + slots as usize * SLOT)
            .map_raw(&file)?;
        Ok(Self {
            map,
            _lock: file,
            slots,
        })
    }

    /// How many slots it has.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Fills a free slot; `text` is cut to nothing if it is over [`MAX_OPEN`], the id stays.
    pub(super) fn open(&self, slot: u32, id: RequestId, text: &[u8]) {
        let text = if text.len() > MAX_OPEN { &[] } else { text };
        self.copy_in(slot, ID, id.as_bytes());
        self.copy_in(slot, OPEN_TEXT, text);
        self.word(slot, OPEN_LEN).store(length(text), Ordering::Relaxed);
        self.word(slot, 0).store(OPEN, Ordering::Release);
    }

    /// Adds the final record; one over [`MAX_CLOSED`] leaves the slot as it is.
    pub(super) fn close(&self, slot: u32, text: &[u8]) {
        if text.len() > MAX_CLOSED {
            return;
        }
        self.copy_in(slot, CLOSED_TEXT, text);
        self.word(slot, CLOSED_LEN).store(length(text), Ordering::Relaxed);
        self.word(slot, 0).store(CLOSED, Ordering::Release);
    }

    /// Empties the slot: its record is in the file.
    pub(super) fn free(&self, slot: u32) {
        self.word(slot, 0).store(FREE, Ordering::Release);
    }

    /// Unmaps the table's pages until they are touched again; what stands in them stays in the file.
    pub(super) fn unmap(&self) {
        // SAFETY: for a shared mapping of a file this changes nothing that can be read (madvise(2), MADV_DONTNEED).
        let advised = unsafe { self.map.unchecked_advise(UncheckedAdvice::DontNeed) };
        if let Err(error) = advised {
            tracing::debug!(%error, "the table of calls under way can't be unmapped");
        }
    }

    fn offset(&self, slot: u32, within: usize, len: usize) -> usize {
        assert!(slot < self.slots && within + len <= SLOT, "outside the slot");
        HEADER + slot as usize * SLOT + within
    }

    fn word(&self, slot: u32, within: usize) -> &AtomicU32 {
        let at = self
            .map
            .as_mut_ptr()
            .wrapping_add(self.offset(slot, within, 4))
            .cast::<u32>();
        // SAFETY: `offset` keeps it inside the mapping, which lives as long as `self`; slots are page-sized and
        // `within` a multiple of four, so it is aligned; all access to these words is atomic.
        unsafe { AtomicU32::from_ptr(at) }
    }

    fn copy_in(&self, slot: u32, within: usize, bytes: &[u8]) {
        let at = self
            .map
            .as_mut_ptr()
            .wrapping_add(self.offset(slot, within, bytes.len()));
        // SAFETY: `offset` keeps the range inside the mapping; `bytes` can't overlap it, for no reference into the
        // mapping but the state words is ever given out; a slot has one holder, and readers are other processes
        // that use pread.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len()) };
    }
}

fn length(text: &[u8]) -> u32 {
    u32::try_from(text.len()).unwrap_or(0)
}

/// The records that a dead worker owes: *aborted* for each call that was under way, the final record where the
/// call had ended. Those whose ids are in `written` (see [`super::file::ids`]) are in the file already.
///
/// The process that mapped the file must be dead. Write what this gives, then [`create`] the table anew.
///
/// # Errors
/// If the file can't be read or is no table. A slot that can't be decoded still gives a record with its id.
pub fn recover(file: &File, written: &HashSet<RequestId>) -> Result<Vec<Record>, Error> {
    let mut records = Vec::new();
    let mut slot = vec![0; SLOT];
    for number in 0..slots_of(file)? {
        file.read_exact_at(&mut slot, HEADER as u64 + u64::from(number) * SLOT as u64)?;
        let state = number_at(&slot, 0);
        let mut id = [0; 16];
        id.copy_from_slice(&slot[ID..ID + 16]);
        let id = RequestId::from_bytes(id);
        if state == FREE || written.contains(&id) {
            continue;
        }
        records.push(owed(&slot, state, id));
    }
    Ok(records)
}

fn owed(slot: &[u8], state: u32, id: RequestId) -> Record {
    if state == CLOSED
        && let Some(record) = text_at(slot, CLOSED_TEXT, CLOSED_LEN, id)
    {
        return record;
    }
    let message = "the agent died while the call was under way";
    let mut record = text_at(slot, OPEN_TEXT, OPEN_LEN, id)
        .unwrap_or_else(|| Record::new(Kind::Call, id, began(id), Caller::default().into()));
    record.outcome = Outcome::Aborted;
    record.error = Some(RecordError {
        source: Source::Internal,
        kind: "agent_died".into(),
        message: message.into(),
    });
    record
}

fn text_at(slot: &[u8], text: usize, len: usize, id: RequestId) -> Option<Record> {
    let len = usize::try_from(number_at(slot, len)).ok()?;
    let record = Record::parse(slot.get(text..text.checked_add(len)?)?).ok()?;
    (record.id == id).then_some(record)
}

fn number_at(slot: &[u8], at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&slot[at..at + 4]);
    u32::from_ne_bytes(bytes)
}

/// A UUIDv7 begins with its time in milliseconds (RFC 9562 section 5.7).
fn began(id: RequestId) -> Timestamp {
    let millis = id.as_bytes()[..6]
        .iter()
        .fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    Timestamp::from_unix_micros(millis.saturating_mul(1000))
}

#[cfg(test)]
mod tests;
