//! The log on sinks that fail, under calls that end in every way.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use super::super::file::{FileSink, Sync, Writes};
use super::super::inflight;
use super::super::record::Source;
use super::super::writer::AppendError;
use super::*;
use crate::identity::WorkloadName;

/// Keeps what it takes; fails while it is told to, and then takes as many bytes as `room` says.
#[derive(Clone, Default)]
struct Fake(Arc<Mutex<FakeState>>);

#[derive(Default)]
struct FakeState {
    lines: Vec<u8>,
    room: Option<usize>,
}

impl Sink for Fake {
    fn append(&mut self, lines: &[u8]) -> Result<(), AppendError> {
        let mut state = self.state();
        let room = state.room.unwrap_or(usize::MAX);
        let fits = lines[..room.min(lines.len())]
            .iter()
            .rposition(|byte| *byte == b'\n');
        let written = fits.map_or(0, |at| at + 1);
        state.lines.extend_from_slice(&lines[..written]);
        if written == lines.len() {
            return Ok(());
        }
        state.room = Some(0);
        let source = io::ErrorKind::StorageFull.into();
        Err(AppendError { written, source })
    }

    fn reopen(&mut self, _: File) {}
}

impl Fake {
    fn state(&self) -> MutexGuard<'_, FakeState> {
        self.0.lock().unwrap()
    }

    fn records(&self) -> Vec<Record> {
        let state = self.state();
        state
            .lines
            .split_inclusive(|byte| *byte == b'\n')
            .map(|line| Record::parse(line).unwrap())
            .collect()
    }
}

fn table(slots: u32) -> Table {
    let file = tempfile::tempfile().unwrap();
    inflight::create(&file, slots).unwrap();
    Table::map(file).unwrap()
}

fn start(sink: impl Sink + 'static, slots: u32, quota: u32) -> (Log, Writer) {
    let settings = Settings {
        queries: Queries::Keys,
        slots_per_workload: quota,
    };
    Log::start(Box::new(sink), table(slots), settings).unwrap()
}

fn connection(log: &Log, workload: &str) -> Connection {
    let caller = Caller {
        workload: Some(WorkloadName::parse(workload).unwrap()),
        ..Caller::default()
    };
    Connection {
        id: log.connection_id(),
        caller: caller.into(),
        original_destination: Some("192.0.2.1:443".parse().unwrap()),
        sni: Some("api.example.com".into()),
        identify: Some(Duration::from_micros(5)),
        detect: None,
        handshake: None,
    }
}

fn opening(connection: &Connection) -> Opening<'_> {
    Opening {
        connection,
        kind: Kind::Call,
        scheme: Some(Scheme::Https),
        protocol: Some(Protocol::H1),
        authority: None,
        method: Some("GET"),
        path: Some("/v1/charges"),
        query: Some("api_key=hunter2&limit=3"),
    }
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < deadline, "not within ten seconds: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn every_call_has_exactly_one_record_however_it_ends() {
    let sink = Fake::default();
    let (log, writer) = start(sink.clone(), 64, 64);
    let mut expected = HashMap::new();
    for number in 0..500 {
        let connection = connection(&log, "a");
        let mut recorder = loop {
            match log.begin(opening(&connection)) {
                Ok(recorder) => break recorder,
                Err(Unavailable::Quota { .. }) => std::thread::yield_now(),
                Err(error) => panic!("{error}"),
            }
        };
        recorder.status(200);
        let id = recorder.id();
        let outcome = match number % 4 {
            0 => Outcome::Completed,
            1 => Outcome::Denied,
            2 => Outcome::Failed,
            _ => Outcome::Aborted,
        };
        expected.insert(id, outcome);
        match outcome {
            Outcome::Aborted => drop(recorder),
            Outcome::Completed | Outcome::Denied | Outcome::Failed => recorder.finish(outcome),
        }
    }
    assert!(writer.close(Duration::from_secs(10)));
    let records = sink.records();
    let got: HashMap<_, _> = records
        .iter()
        .filter(|record| record.kind == Kind::Call)
        .map(|record| (record.id, record.outcome))
        .collect();
    assert_eq!(got, expected);
    assert_eq!(
        records.iter().filter(|record| record.kind == Kind::Call).count(),
        500
    );
}

#[test]
fn a_panic_and_a_cancelled_future_leave_a_record() {
    let sink = Fake::default();
    let (log, writer) = start(sink.clone(), 8, 8);
    let shared = connection(&log, "a");
    let recorder = log.begin(opening(&shared)).unwrap();
    let panicked = std::thread::spawn(move || {
        let _held = recorder;
        panic!("on purpose");
    });
    panicked.join().unwrap_err();
    let recorder = log.begin(opening(&shared)).unwrap();
    drop(async move { recorder.finish(Outcome::Completed) });
    assert!(writer.close(Duration::from_secs(10)));
    let outcomes: Vec<_> = sink.records().iter().map(|record| record.outcome).collect();
    assert_eq!(outcomes, [Outcome::Aborted, Outcome::Aborted]);
}

#[test]
fn a_full_disk_refuses_calls_and_loses_no_record() {
    let sink = Fake::default();
    let (log, writer) = start(sink.clone(), 16, 16);
    let shared = connection(&log, "a");
    let begun: Vec<_> = (0..10).map(|_| log.begin(opening(&shared)).unwrap()).collect();
    sink.state().room = Some(1000);
    let ids: Vec<_> = begun.iter().map(Recorder::id).collect();
    begun
        .into_iter()
        .for_each(|recorder| recorder.finish(Outcome::Completed));
    until("the log has failed", || log.failure().is_some());
    let error = log.begin(opening(&shared)).unwrap_err();
    assert_eq!(error.code(), "audit_unavailable");
    assert!(error.to_string().contains("can't be written"), "{error}");
    sink.state().room = None;
    until("the log works again", || log.failure().is_none());
    log.begin(opening(&shared)).unwrap().finish(Outcome::Completed);
    assert!(writer.close(Duration::from_secs(10)));
    let records = sink.records();
    let calls: Vec<_> = records
        .iter()
        .filter(|record| record.kind == Kind::Call)
        .collect();
    assert_eq!(
        calls[..10].iter().map(|record| record.id).collect::<Vec<_>>(),
        ids
    );
    assert_eq!(calls.len(), 11);
    let lost = records
        .iter()
        .find(|record| record.kind == Kind::Unrecorded)
        .unwrap();
    assert_eq!(lost.count, Some(1));
}

#[test]
fn dev_full_is_a_disk_that_is_full() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let (log, writer) = start(FileSink::new(full, Writes::Supervisor, Sync::Never), 4, 4);
    log.begin(opening(&connection(&log, "a")))
        .unwrap()
        .finish(Outcome::Completed);
    until("the log has failed", || log.failure().is_some());
    let reason = log
        .begin(opening(&connection(&log, "a")))
        .unwrap_err()
        .to_string();
    assert!(reason.contains("No space left on device"), "{reason}");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    log.reopen(super::super::file::open(&path).unwrap());
    until("the log works again", || log.failure().is_none());
    assert!(writer.close(Duration::from_secs(10)));
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2);
}

#[test]
fn a_closed_writer_says_what_it_could_not_write() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let (log, writer) = start(FileSink::new(full, Writes::Supervisor, Sync::Never), 4, 4);
    log.begin(opening(&connection(&log, "a")))
        .unwrap()
        .finish(Outcome::Completed);
    assert!(!writer.close(Duration::from_millis(10)));
}

#[test]
fn calls_over_a_limit_are_refused_and_counted_for_their_workload() {
    let sink = Fake::default();
    let (log, writer) = start(sink.clone(), 6, 3);
    log.entitle([WorkloadName::parse("b").unwrap()]);
    let (a, b) = (connection(&log, "a"), connection(&log, "b"));
    let begin = |connection: &Connection| log.begin(opening(connection));
    let held: Vec<_> = (0..3).map(|_| begin(&a).unwrap()).collect();
    for _ in 0..5 {
        assert_eq!(begin(&a).unwrap_err(), Unavailable::Quota { quota: 3 });
    }
    let other = [begin(&b).unwrap(), begin(&b).unwrap()];
    assert_eq!(begin(&connection(&log, "c")).unwrap_err(), Unavailable::Table);
    until("the counts", || sink.records().len() >= 2);
    drop((held, other));
    assert!(writer.close(Duration::from_secs(10)));
    let count = |workload: &str| {
        let of_it = |record: &&Record| {
            record.kind == Kind::Unrecorded
                && record.reason.as_deref() == Some("limit")
                && record
                    .caller
                    .workload
                    .as_ref()
                    .is_some_and(|name| name.as_str() == workload)
        };
        sink.records()
            .iter()
            .filter(of_it)
            .filter_map(|record| record.count)
            .sum::<u64>()
    };
    assert_eq!((count("a"), count("b"), count("c")), (5, 0, 1));
}

#[test]
fn a_record_has_the_query_without_its_values_and_the_first_error() {
    let sink = Fake::default();
    let (log, writer) = start(sink.clone(), 4, 2);
    let mut recorder = log.begin(opening(&connection(&log, "a"))).unwrap();
    recorder.error(Source::Upstream, "connect", "refused");
    recorder.error(Source::Internal, "later", "a consequence");
    recorder.finish(Outcome::Failed);
    assert!(writer.close(Duration::from_secs(10)));
    let record = sink.records().remove(0);
    assert_eq!(record.query.as_deref(), Some("api_key=*&limit=*"));
    assert_eq!(record.error.unwrap().message.as_ref(), "refused");
    assert_eq!(record.timings.identify_us, Some(5));
}

#[test]
fn a_recorder_can_move_to_another_thread() {
    fn is_send<T: Send>() {}
    is_send::<Recorder>();
    is_send::<Log>();
}

#[test]
fn ids_are_version_seven_and_all_different() {
    let ids = Ids::new();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..100_000 {
        let (id, time) = ids.next();
        let uuid = Uuid::from_bytes(id);
        assert_eq!(uuid.get_version_num(), 7);
        let (seconds, nanos) = uuid.get_timestamp().unwrap().to_unix();
        assert_eq!(
            seconds * 1000 + u64::from(nanos) / 1_000_000,
            time.unix_micros() / 1000
        );
        assert!(seen.insert(id));
    }
}

/// Takes every line, and the first time says that it is not safely stored.
struct Unsynced(bool);

impl Sink for Unsynced {
    fn append(&mut self, lines: &[u8]) -> Result<(), AppendError> {
        if std::mem::replace(&mut self.0, true) {
            return Ok(());
        }
        let source = io::Error::other("fdatasync");
        Err(AppendError {
            written: lines.len(),
            source,
        })
    }

    fn reopen(&mut self, _: File) {}
}

#[test]
fn a_failure_that_leaves_nothing_to_write_is_got_over_without_a_new_call() {
    let (log, writer) = start(Unsynced(false), 4, 4);
    log.begin(opening(&connection(&log, "a")))
        .unwrap()
        .finish(Outcome::Completed);
    until("the log has failed", || log.failure().is_some());
    until("the log works again", || log.failure().is_none());
    assert!(writer.close(Duration::from_secs(10)));
}
