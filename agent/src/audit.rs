//! One record per call: what it holds, who writes it, and what survives a kill.
//!
//! [`Log::begin`] reserves a slot in the in-flight table and writes there who calls what; only then may a byte go
//! upstream. The [`Recorder`] that it gives ends in exactly one record: by `finish`, or as *aborted* when it is
//! dropped. A thread of its own appends the records to the file in batches and frees each slot only after its
//! record is in the file, so that a killed worker leaves either the record or the slot, and
//! [`inflight::recover`] turns what is left into records.
//!
//! A disk that is full, or a file that can't be written, makes `begin` fail: calls are refused, and say why,
//! until a retry succeeds. Records already owed are kept; calls refused meanwhile are counted and the count
//! becomes a record.

pub mod file;
pub mod inflight;
pub mod log;
pub mod record;
pub mod recorder;
mod slots;
mod writer;

pub use log::{Connection, Log, Opening, Queries, Settings, Unavailable};
pub use record::{ConnectionId, Kind, Outcome, Record, RequestId};
pub use recorder::{Phase, Recorder};
pub use writer::{AppendError, Sink, Writer};
