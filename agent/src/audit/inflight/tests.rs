//! What a worker that is killed leaves, and what becomes of it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::super::file::{self, FileSink, Sync};
use super::super::log::{Connection, Log, Opening, Queries, Settings};
use super::super::record::Protocol;
use super::*;
use crate::identity::WorkloadName;

const SLOTS: u32 = 64;

fn table(slots: u32) -> (File, Table) {
    let file = tempfile::tempfile().unwrap();
    create(&file, slots).unwrap();
    let table = Table::map(file.try_clone().unwrap()).unwrap();
    (file, table)
}

fn record(number: u8) -> Record {
    let time = Timestamp::from_unix_micros(1);
    let mut record = Record::new(
        Kind::Call,
        RequestId::from_bytes([number; 16]),
        time,
        Caller::default().into(),
    );
    record.path = Some("/v1/charges".into());
    record
}

fn line(record: &Record) -> Vec<u8> {
    let mut line = Vec::new();
    record.write_line(&mut line).unwrap();
    line
}

#[test]
fn what_was_under_way_comes_back_as_aborted_and_what_had_ended_as_it_ended() {
    let (file, table) = table(4);
    let (open, mut ended, freed) = (record(1), record(2), record(3));
    table.open(0, open.id, &line(&open));
    table.open(1, ended.id, &line(&ended));
    ended.outcome = Outcome::Completed;
    ended.status = Some(200);
    table.close(1, &line(&ended));
    table.open(2, freed.id, &line(&freed));
    table.free(2);
    let records = recover(&file, &HashSet::new()).unwrap();
    assert_eq!(records.len(), 2);
    assert_eq!((records[0].id, records[0].outcome), (open.id, Outcome::Aborted));
    assert_eq!(records[0].path.as_deref(), Some("/v1/charges"));
    assert_eq!(records[0].error.as_ref().unwrap().kind.as_ref(), "agent_died");
    assert_eq!(records[1], ended);
}

#[test]
fn what_is_unmapped_stays_in_the_file_and_goes_on() {
    let (file, table) = table(2);
    let (before, mut under_way) = (record(1), record(2));
    table.open(0, before.id, &line(&before));
    table.open(1, under_way.id, &line(&under_way));
    table.unmap();
    under_way.outcome = Outcome::Completed;
    table.close(1, &line(&under_way));
    let records = recover(&file, &HashSet::new()).unwrap();
    assert_eq!((records[0].id, records[0].outcome), (before.id, Outcome::Aborted));
    assert_eq!(records[1], under_way);
}

#[test]
fn a_record_that_was_written_before_its_slot_was_freed_is_not_doubled() {
    let (file, table) = table(2);
    let written = record(1);
    table.open(0, written.id, &line(&written));
    table.close(0, &line(&written));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    std::fs::write(&path, line(&written)).unwrap();
    let ids = file::ids(&path, 1 << 20).unwrap();
    assert_eq!(recover(&file, &ids).unwrap(), []);
}

#[test]
fn a_slot_that_makes_no_sense_still_gives_a_record_and_never_a_panic() {
    let (file, table) = table(3);
    table.open(0, record(1).id, b"{\"half");
    table.open(1, record(2).id, &vec![b'x'; MAX_OPEN + 1]);
    table.open(2, record(3).id, &line(&record(9)));
    for at in [OPEN_LEN, CLOSED_LEN] {
        file.write_all_at(&u32::MAX.to_ne_bytes(), (HEADER + at) as u64)
            .unwrap();
    }
    file.write_all_at(&77_u32.to_ne_bytes(), HEADER as u64).unwrap();
    let ids: Vec<_> = recover(&file, &HashSet::new())
        .unwrap()
        .iter()
        .map(|record| record.id)
        .collect();
    assert_eq!(ids, [record(1).id, record(2).id, record(3).id]);
}

#[test]
fn a_file_that_is_no_table_is_refused() {
    let (file, _table) = table(2);
    for (at, bytes) in [
        (0, &b"X"[..]),
        (16, &[3, 0, 0, 0]),
        (16, &[0, 0, 0, 0]),
        (16, &[255; 4]),
    ] {
        let bad = tempfile::tempfile().unwrap();
        create(&bad, 2).unwrap();
        bad.write_all_at(bytes, at).unwrap();
        assert!(matches!(Table::map(bad.try_clone().unwrap()), Err(Error::Form)));
        assert!(matches!(recover(&bad, &HashSet::new()), Err(Error::Form)));
    }
    file.set_len(100).unwrap();
    assert!(matches!(recover(&file, &HashSet::new()), Err(Error::Form)));
    assert!(matches!(create(&file, 0), Err(Error::Slots { slots: 0 })));
    assert!(matches!(create(&file, MAX_SLOTS + 1), Err(Error::Slots { .. })));
}

#[test]
fn a_table_has_its_disk_blocks_from_the_beginning() {
    use std::os::unix::fs::MetadataExt as _;
    let (file, table) = table(10);
    assert!(file.metadata().unwrap().blocks() * 512 >= 11 * 4096);
    assert_eq!(table.slots(), 10);
}

/// Kills a worker with calls in every phase, twenty times over one log, and counts.
#[test]
fn a_killed_worker_leaves_exactly_one_record_for_each_call() {
    // The worker is this test in a process of its own.
    if let Some(directory) = std::env::var_os("CALLGATE_TEST_DIRECTORY") {
        return work(&PathBuf::from(directory));
    }
    let directory = tempfile::tempdir().unwrap();
    let (log, upstream) = (
        directory.path().join("audit.jsonl"),
        directory.path().join("upstream"),
    );
    let slots = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(directory.path().join("inflight"));
    let slots = slots.unwrap();
    let mut aborted = 0;
    for round in 1..=20 {
        create(&slots, SLOTS).unwrap();
        let mut worker = Killed(worker_in(directory.path()));
        wait_for(&upstream, round * 200);
        worker.0.kill().unwrap();
        worker.0.wait().unwrap();
        file::mend(&log, 1 << 20).unwrap();
        let records = recover(&slots, &file::ids(&log, 1 << 24).unwrap()).unwrap();
        aborted += records
            .iter()
            .filter(|record| record.outcome == Outcome::Aborted)
            .count();
        let mut file = file::open(&log).unwrap();
        records
            .iter()
            .for_each(|record| file.write_all(&line(record)).unwrap());
    }
    let mut ids = HashSet::new();
    for line in std::fs::read_to_string(&log).unwrap().lines() {
        let record = Record::parse(line.as_bytes()).unwrap();
        assert!(
            record.kind == Kind::Unrecorded || ids.insert(record.id),
            "twice: {line}"
        );
    }
    for call in std::fs::read_to_string(&upstream).unwrap().lines() {
        assert!(ids.contains(&call.parse().unwrap()), "no record: {call}");
    }
    assert!(aborted > 0, "no worker was killed in mid-call");
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Already dead and reaped on the good path.
        if let Ok(None) = self.0.try_wait() {
            self.0.kill().and_then(|()| self.0.wait()).unwrap();
        }
    }
}

fn worker_in(directory: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "audit::inflight::tests::a_killed_worker_leaves_exactly_one_record_for_each_call",
            "--exact",
        ])
        .env("CALLGATE_TEST_DIRECTORY", directory)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn wait_for(upstream: &Path, lines: usize) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while std::fs::metadata(upstream).map_or(0, |meta| meta.len()) < 37 * lines as u64 {
        assert!(Instant::now() < deadline, "the worker does not get on");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Makes calls until it is killed.
fn work(directory: &Path) {
    let slots = File::options()
        .read(true)
        .write(true)
        .open(directory.join("inflight"))
        .unwrap();
    let settings = Settings {
        queries: Queries::Keys,
        slots_per_workload: SLOTS / 2,
    };
    let sink = FileSink::new(
        file::open(&directory.join("audit.jsonl")).unwrap(),
        file::Writes::Worker,
        Sync::Never,
    );
    let (log, _writer) = Log::start(Box::new(sink), Table::map(slots).unwrap(), settings).unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    let threads = [0, 1].map(|number| {
        let (log, path) = (log.clone(), directory.join("upstream"));
        std::thread::spawn(move || calls(&log, number, &path, until))
    });
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

fn calls(log: &Log, number: u8, upstream: &Path, until: Instant) {
    let caller = Caller {
        workload: Some(WorkloadName::parse(&format!("w{number}")).unwrap()),
        ..Caller::default()
    };
    let connection = Connection {
        id: log.connection_id(),
        caller: caller.into(),
        original_destination: None,
        sni: None,
        identify: None,
        detect: None,
        handshake: None,
    };
    let opening = Opening {
        connection: &connection,
        kind: Kind::Call,
        scheme: None,
        protocol: Some(Protocol::H1),
        authority: None,
        method: Some("GET"),
        path: Some("/v1/charges"),
        query: None,
    };
    let mut upstream = file::open(upstream).unwrap();
    let mut held = std::collections::VecDeque::new();
    while Instant::now() < until {
        let Ok(recorder) = log.begin(opening) else {
            std::thread::yield_now();
            continue;
        };
        upstream
            .write_all(format!("{}\n", recorder.id()).as_bytes())
            .unwrap();
        held.push_back(recorder);
        if held.len() > 3 {
            held.pop_front().unwrap().finish(Outcome::Completed);
        }
    }
}
