//! What is printed of records that a client tried to bend.

use clap::Parser;

use super::*;
use crate::audit::record::{Caller, Kind, Outcome, Timestamp};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    audit: AuditArgs,
}

fn record(number: u8) -> Record {
    let caller = Caller {
        workload: Some(WorkloadName::parse("billing").unwrap()),
        comm: Some("curl".into()),
        pid: Some(7),
        ..Caller::default()
    };
    let time = Timestamp::from_unix_micros(0);
    let mut record = Record::new(
        Kind::Call,
        RequestId::from_bytes([number; 16]),
        time,
        caller.into(),
    );
    record.outcome = Outcome::Denied;
    record.method = Some("GET".into());
    record.authority = Some("api.example.com:443".into());
    record.path = Some("/v1/a\u{1b}[2J\u{202e} rule=admin".into());
    record.status = Some(403);
    record.reason = Some("call_not_allowed".into());
    record.timings.total_us = 1234;
    record
}

fn printed(arguments: &[&str], records: &[Record]) -> (String, ExitCode) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let mut bytes = Vec::new();
    records
        .iter()
        .for_each(|record| record.write_line(&mut bytes).unwrap());
    bytes.extend_from_slice(b"{\"torn");
    std::fs::write(&path, bytes).unwrap();
    let cli = Cli::try_parse_from(["x"].iter().chain(arguments)).unwrap();
    let mut out = Vec::new();
    let code = match cli.audit.command {
        Command::Tail(tail) => tail.run(&path, &mut out).unwrap(),
        Command::Show(show) => show.run(&path, &mut out).unwrap(),
    };
    (String::from_utf8(out).unwrap(), code)
}

#[test]
fn a_line_shows_what_a_client_chose_escaped() {
    let (text, _) = printed(&["tail"], &[record(1)]);
    assert_eq!(
        text,
        "1970-01-01T00:00:00.000000Z denied    billing GET \
         \"api.example.com:443/v1/a\\u{1b}[2J\\u{202e} rule=admin\" -> 403 reason=call_not_allowed pid=7 1.2ms \
         id=01010101-0101-0101-0101-010101010101\n"
    );
}

#[test]
fn tail_takes_the_last_ones_of_one_workload() {
    let mut other = record(3);
    other.caller = Caller::default().into();
    let records = [record(1), record(2), other];
    let (text, _) = printed(&["tail", "-n", "1", "--json", "--workload", "billing"], &records);
    assert_eq!(Record::parse(text.as_bytes()).unwrap(), records[1]);
}

#[test]
fn show_finds_one_record_or_says_that_there_is_none() {
    let (text, code) = printed(
        &["show", "02020202-0202-0202-0202-020202020202"],
        &[record(1), record(2)],
    );
    assert!(text.contains("timings.total_us       1234\n"), "{text}");
    assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::SUCCESS));
    let (text, code) = printed(&["show", "09020202-0202-0202-0202-020202020202"], &[record(1)]);
    assert!(text.contains("no record with the id"));
    assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::FAILURE));
}
