//! What one record costs the thread that serves the call: begin, setters, finish, with the writer thread on a real
//! file; and its parts.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use callgate::addr::{Authority, HostName};
use callgate::audit::file::{self, FileSink, Sync, Writes};
use callgate::audit::record::{Caller, Exe, Protocol, Record, redact_query};
use callgate::audit::{Connection, Kind, Log, Opening, Outcome, Phase, Queries, Settings, inflight};
use callgate::identity::{Cgroup, WorkloadName};
use callgate::policy::Scheme;
use criterion::{Criterion, criterion_group, criterion_main};

fn caller() -> Caller {
    Caller {
        workload: WorkloadName::parse("billing").ok(),
        unit: Some("billing.service".into()),
        invocation: Some("0123456789abcdef0123456789abcdef".into()),
        cgroup: Some(Cgroup {
            id: 4242,
            path: Some("/callgate.slice/callgate-billing.slice/billing.service".into()),
        }),
        container: None,
        pid: Some(4711),
        start_time: Some(123_456_789_000),
        uid: Some(1000),
        gid: Some(1000),
        user: Some("billing".into()),
        comm: Some("python3".into()),
        exe: Some(Exe {
            path: Some("/usr/bin/python3.13".into()),
            device: 65_025,
            inode: 991_122,
            sha256: None,
        }),
    }
}

fn record(criterion: &mut Criterion) {
    let (Ok(directory), Ok(slots), Ok(host)) = (
        tempfile::tempdir(),
        tempfile::tempfile(),
        HostName::parse("api.stripe.com"),
    ) else {
        return;
    };
    let table = inflight::create(&slots, 4096).and_then(|()| inflight::Table::map(slots));
    let (Ok(table), Ok(log)) = (table, file::open(&directory.path().join("audit.jsonl"))) else {
        return;
    };
    let settings = Settings {
        queries: Queries::Keys,
        slots_per_workload: 4096,
    };
    let Ok((log, writer)) = Log::start(
        Box::new(FileSink::new(log, Writes::Worker, Sync::Never)),
        table,
        settings,
    ) else {
        return;
    };
    let connection = Connection {
        id: log.connection_id(),
        caller: caller().into(),
        original_destination: Some(([198, 51, 100, 1], 443).into()),
        sni: Some("api.stripe.com".into()),
        identify: Some(Duration::from_micros(40)),
        detect: Some(Duration::from_micros(10)),
        handshake: Some(Duration::from_micros(700)),
    };
    let authority = Authority::new(host, 443);
    let opening = Opening {
        connection: &connection,
        kind: Kind::Call,
        scheme: Some(Scheme::Https),
        protocol: Some(Protocol::H1),
        authority: Some(&authority),
        method: Some("GET"),
        path: Some("/v1/charges/ch_3MmlLrLkdIwHu7ix0snN0B15"),
        query: Some("expand=customer&limit=10"),
    };
    let version: Arc<str> = "1@2026-01-01T00:00:00Z".into();
    criterion.bench_function("a whole record", |bencher| {
        bencher.iter(|| one(&log, opening, &version))
    });
    parts(criterion, &log, &connection);
    writer.close(Duration::from_secs(10));
}

fn one(log: &Log, opening: Opening<'_>, version: &Arc<str>) {
    // Faster than the writer: a real call has to wait for its answer, this one for a slot.
    let mut recorder = loop {
        match log.begin(opening) {
            Ok(recorder) => break recorder,
            Err(_) => std::thread::yield_now(),
        }
    };
    recorder.reached(Phase::Decided);
    recorder.credential("stripe", version);
    recorder.upstream(([198, 51, 100, 1], 443).into());
    recorder.reached(Phase::Connected);
    recorder.reached(Phase::FirstByte);
    recorder.status(200);
    recorder.add_down(512);
    recorder.finish(Outcome::Completed);
}

fn parts(criterion: &mut Criterion, log: &Log, connection: &Connection) {
    let mut line = Vec::new();
    let mut record: Record = log.record(Kind::Call, connection.caller.clone());
    record.path = Some("/v1/charges/ch_3MmlLrLkdIwHu7ix0snN0B15".into());
    criterion.bench_function("one line of JSON", |bencher| {
        bencher.iter(|| {
            line.clear();
            black_box(&record).write_line(&mut line).is_ok()
        });
    });
    criterion.bench_function("an id", |bencher| bencher.iter(|| log.connection_id()));
    criterion.bench_function("a query redacted", |bencher| {
        bencher.iter(|| redact_query(black_box("expand=customer&limit=10")));
    });
}

criterion_group!(benches, record);
criterion_main!(benches);
