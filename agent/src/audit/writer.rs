//! The thread that appends records to the sink, in batches, and frees their slots afterwards.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::inflight::Table;
use super::slots::{Holder, Slots};

/// After a batch the writer waits this long for the next one to gather: under load one write(2) takes many
/// records, and a lone record is written at once.
const GATHER: Duration = Duration::from_millis(10);
/// A batch of this many bytes is written without waiting.
const BATCH: usize = 64 * 1024;
/// Refusals of a flood are gathered for so long: they make one record in that time.
const OVER: Duration = Duration::from_millis(500);
/// How often a sink that failed is tried again.
const RETRY: Duration = Duration::from_millis(250);
/// Records that hold no slot (kernel refusals, direct connections) wait in this many bytes at most.
const MAX_LOOSE: usize = 1024 * 1024;

/// Where records go.
pub trait Sink: Send {
    /// Appends whole lines. After an error the caller comes back with the lines that were not written, the same
    /// bytes from the first of them on.
    ///
    /// # Errors
    /// Says how many bytes of whole lines are written all the same.
    fn append(&mut self, lines: &[u8]) -> Result<(), AppendError>;

    /// Goes on in another file (rotation).
    fn reopen(&mut self, file: File);
}

/// A sink that could not take everything.
#[derive(Debug, thiserror::Error)]
#[error("the audit log can't be written: {source}")]
pub struct AppendError {
    /// Bytes of whole lines that are written.
    pub written: usize,
    /// What the system said.
    pub source: io::Error,
}

/// What the writer shares with those who record.
pub(super) struct Shared {
    pub(super) table: Table,
    slots: Mutex<Slots>,
    queue: Mutex<Queue>,
    wake: Condvar,
    failed: AtomicBool,
    /// So many records are a batch, however few bytes: a call counts against its workload's limit until it is written.
    enough: usize,
}

#[derive(Default)]
struct Queue {
    batch: Batch,
    loose: usize,
    idle: bool,
    closing: Option<Instant>,
    reopen: Option<File>,
    failure: Option<Arc<str>>,
    refused: u64,
    dropped: u64,
    /// Calls and connections that were refused in floods, by workload and reason, until they are put on record.
    over: HashMap<(Holder, &'static str), u64>,
    over_due: Option<Instant>,
}

/// Calls, or events, that have no record of their own.
#[derive(Debug, Default)]
pub(super) struct Loss {
    /// What was refused of this workload for this reason; `None`: calls of any while the log could not be written.
    pub(super) over: Option<(Holder, &'static str)>,
    /// How many.
    pub(super) calls: u64,
    /// Records of events (kernel refusals, direct connections) that there was no room for.
    pub(super) events: u64,
}

#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

/// One line of a batch: where it ends and whose slot is free once it is written.
struct Entry {
    end: usize,
    slot: Option<(u32, Holder)>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks can be left half done: a poisoned one is as good as any.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(table: Table, slots: Slots) -> Self {
        Self {
            enough: slots.quota().div_ceil(8),
            table,
            slots: Mutex::new(slots),
            queue: Mutex::default(),
            wake: Condvar::new(),
            failed: AtomicBool::new(false),
        }
    }

    pub(super) fn slots(&self) -> MutexGuard<'_, Slots> {
        locked(&self.slots)
    }

    /// Why the sink fails at present; counts the call that is refused for it.
    pub(super) fn refuse(&self) -> Option<Arc<str>> {
        if !self.failed.load(Ordering::Acquire) {
            return None;
        }
        let mut queue = locked(&self.queue);
        let reason = queue.failure.clone()?;
        queue.refused += 1;
        Some(reason)
    }

    /// Counts what is refused without a record of its own.
    pub(super) fn count_over(&self, holder: &Holder, reason: &'static str) {
        let mut queue = locked(&self.queue);
        *queue.over.entry((holder.clone(), reason)).or_default() += 1;
        let first = queue.over_due.is_none();
        queue.over_due.get_or_insert_with(|| Instant::now() + OVER);
        drop(queue);
        if first {
            self.wake.notify_one();
        }
    }

    pub(super) fn failure(&self) -> Option<Arc<str>> {
        locked(&self.queue).failure.clone()
    }

    /// Queues a line whose slot is to be freed.
    pub(super) fn push(&self, line: &[u8], slot: u32, workload: Holder) {
        let mut queue = locked(&self.queue);
        queue.add(line, Some((slot, workload)));
        self.notify(queue);
    }

    /// Queues a line that holds no slot; one too many is dropped and counted.
    pub(super) fn push_loose(&self, line: &[u8]) {
        let mut queue = locked(&self.queue);
        if queue.loose + line.len() > MAX_LOOSE {
            queue.dropped += 1;
            return;
        }
        queue.loose += line.len();
        queue.add(line, None);
        self.notify(queue);
    }

    pub(super) fn reopen(&self, file: File) {
        let mut queue = locked(&self.queue);
        queue.reopen = Some(file);
        self.notify(queue);
    }

    fn is_enough(&self, batch: &Batch) -> bool {
        batch.bytes.len() >= BATCH || batch.entries.len() >= self.enough
    }

    fn notify(&self, mut queue: MutexGuard<'_, Queue>) {
        let wake = queue.idle || self.is_enough(&queue.batch);
        queue.idle = false;
        drop(queue);
        if wake {
            self.wake.notify_one();
        }
    }
}

impl Queue {
    fn add(&mut self, line: &[u8], slot: Option<(u32, Holder)>) {
        self.batch.bytes.extend_from_slice(line);
        self.batch.entries.push(Entry {
            end: self.batch.bytes.len(),
            slot,
        });
    }

    fn has_work(&self) -> bool {
        !self.batch.entries.is_empty()
            || self.reopen.is_some()
            || self.closing.is_some()
            || self.lost() > 0
            || self.until_due().is_some_and(|left| left.is_zero())
    }

    fn lost(&self) -> u64 {
        self.refused + self.dropped
    }

    /// How long the writer may sleep for the sake of [`Queue::over`].
    fn until_due(&self) -> Option<Duration> {
        Some(self.over_due?.saturating_duration_since(Instant::now()))
    }

    /// What has no record of its own and is to be put on record now.
    fn losses(&mut self) -> Vec<Loss> {
        let mut losses = Vec::new();
        if self.lost() > 0 {
            losses.push(Loss {
                over: None,
                calls: std::mem::take(&mut self.refused),
                events: std::mem::take(&mut self.dropped),
            });
        }
        if self.closing.is_some() || self.until_due().is_some_and(|left| left.is_zero()) {
            self.over_due = None;
            losses.extend(self.over.drain().map(|(whose, calls)| Loss {
                over: Some(whose),
                calls,
                events: 0,
            }));
        }
        losses
    }
}

impl Batch {
    fn absorb(&mut self, other: &mut Self) {
        if self.entries.is_empty() {
            std::mem::swap(self, other);
            return;
        }
        let base = self.bytes.len();
        self.bytes.append(&mut other.bytes);
        self.entries.extend(other.entries.drain(..).map(|entry| Entry {
            end: base + entry.end,
            slot: entry.slot,
        }));
    }

    /// Takes off what is written, for `release` to free.
    fn written(&mut self, bytes: usize) -> Vec<Entry> {
        let count = self.entries.partition_point(|entry| entry.end <= bytes);
        let done: Vec<_> = self.entries.drain(..count).collect();
        let cut = done.last().map_or(0, |entry| entry.end);
        self.bytes.drain(..cut);
        for entry in &mut self.entries {
            entry.end -= cut;
        }
        done
    }
}

/// The writer thread's handle; dropping it asks the thread to write what is queued and end.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("table", &self.table)
            .finish_non_exhaustive()
    }
}

/// Makes the line that says how many calls and events have no record of their own.
pub(super) type LossLine = Box<dyn Fn(&Loss) -> Vec<u8> + Send>;

impl Writer {
    pub(super) fn start(shared: &Arc<Shared>, sink: Box<dyn Sink>, loss: LossLine) -> io::Result<Self> {
        let mut thread = Thread {
            shared: Arc::clone(shared),
            sink,
            loss,
            retained: Batch::default(),
        };
        let thread = std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || thread.run())?;
        Ok(Self {
            shared: Arc::clone(shared),
            thread: Some(thread),
        })
    }

    /// Writes what is queued and ends the thread. `false` if the sink could not take it all within `within`: the
    /// in-flight table still holds the rest, for [`super::inflight::recover`].
    pub fn close(mut self, within: Duration) -> bool {
        self.ask_to_end(within);
        let ended = self.thread.take().is_none_or(|thread| thread.join().is_ok());
        ended && locked(&self.shared.queue).failure.is_none()
    }

    fn ask_to_end(&self, within: Duration) {
        locked(&self.shared.queue)
            .closing
            .get_or_insert(Instant::now() + within);
        self.shared.wake.notify_one();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.ask_to_end(Duration::ZERO);
    }
}

struct Thread {
    shared: Arc<Shared>,
    sink: Box<dyn Sink>,
    loss: LossLine,
    retained: Batch,
}

impl Thread {
    fn run(&mut self) {
        loop {
            let closing = self.gather();
            let result = self.write();
            self.report(&result);
            let pause = if result.is_ok() { GATHER } else { RETRY };
            if let Some(deadline) = closing
                && (self.nothing_left() || Instant::now() >= deadline)
            {
                return;
            }
            self.pause(pause, result.is_ok());
        }
    }

    /// Waits for something to do and takes all there is.
    fn gather(&mut self) -> Option<Instant> {
        let shared = Arc::clone(&self.shared);
        let mut queue = locked(&shared.queue);
        // After a failure that left nothing to write (fdatasync) the next round tries anew, without a call to wake it.
        while self.retained.entries.is_empty() && queue.failure.is_none() && !queue.has_work() {
            queue.idle = true;
            queue = match queue.until_due() {
                None => shared.wake.wait(queue).unwrap_or_else(PoisonError::into_inner),
                Some(left) => {
                    let waited = shared.wake.wait_timeout(queue, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        queue.idle = false;
        queue.loose = 0;
        self.retained.absorb(&mut queue.batch);
        if let Some(file) = queue.reopen.take() {
            self.sink.reopen(file);
        }
        // While the sink fails the losses still grow: their line comes when it works again.
        if queue.failure.is_none() {
            for loss in queue.losses() {
                self.retained.bytes.extend_from_slice(&(self.loss)(&loss));
                let end = self.retained.bytes.len();
                self.retained.entries.push(Entry { end, slot: None });
            }
        }
        queue.closing
    }

    fn write(&mut self) -> Result<(), AppendError> {
        if self.retained.entries.is_empty() {
            return Ok(());
        }
        let result = self.sink.append(&self.retained.bytes);
        let written = match &result {
            Ok(()) => self.retained.bytes.len(),
            Err(error) => error.written,
        };
        let done = self.retained.written(written);
        for (slot, _) in done.iter().filter_map(|entry| entry.slot.as_ref()) {
            self.shared.table.free(*slot);
        }
        let mut slots = self.shared.slots();
        for (slot, workload) in done.into_iter().filter_map(|entry| entry.slot) {
            slots.give_back(slot, &workload);
        }
        result
    }

    fn report(&self, result: &Result<(), AppendError>) {
        let mut queue = locked(&self.shared.queue);
        match result {
            Ok(()) => {
                if queue.failure.take().is_some() {
                    tracing::info!(
                        refused = queue.refused,
                        "the audit log can be written again; calls go on"
                    );
                    self.shared.failed.store(false, Ordering::Release);
                }
            }
            Err(error) => {
                if queue.failure.is_none() {
                    tracing::error!(%error, "calls are refused until the audit log can be written");
                }
                queue.failure = Some(error.to_string().into());
                self.shared.failed.store(true, Ordering::Release);
            }
        }
    }

    fn nothing_left(&self) -> bool {
        self.retained.entries.is_empty() && locked(&self.shared.queue).batch.entries.is_empty()
    }

    fn pause(&self, pause: Duration, healthy: bool) {
        let queue = locked(&self.shared.queue);
        let enough = |queue: &mut Queue| {
            let full = healthy && self.shared.is_enough(&queue.batch);
            !full && queue.closing.is_none() && queue.reopen.is_none()
        };
        let waited = self.shared.wake.wait_timeout_while(queue, pause, enough);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}
