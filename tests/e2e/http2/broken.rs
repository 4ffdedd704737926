//! Requests and frames that break HTTP/2, and clients that flood: each ends clearly for the client, and in one record.

use std::collections::BTreeSet;

use anyhow::Result;
use harness::require;

use super::{records, run, shown, start};

/// What the client gets, and the record: kind, path, outcome, reason, status, kind of error.
type End = (&'static str, &'static str);

/// The library's own answer to a request that breaks HTTP/2 (RFC 9113 section 8.1.1).
const RESET: End = ("rst 1", "call - denied malformed_request - malformed_request");
/// And where the whole connection can't be trusted any more.
const GOAWAY: End = ("goaway 1", "connection - failed - - http2");
const CALM: End = ("goaway 11", "connection - failed - - http2");
const FLOOD: End = ("goaway 11", "connection - failed - - http2_flood");
const MALFORMED: End = (
    "status 400",
    "call /malformed denied malformed_request 400 malformed_request",
);

const REQUESTS: [(&str, End); 33] = [
    ("no-path", RESET),
    ("empty-path", RESET),
    ("relative-path", RESET),
    ("no-method", RESET),
    ("two-methods", RESET),
    ("two-authorities", RESET),
    ("late-pseudo", RESET),
    ("status", RESET),
    ("connection", RESET),
    ("transfer-encoding", RESET),
    ("te", RESET),
    ("unknown-pseudo", GOAWAY),
    ("upper-case", GOAWAY),
    ("line-break", GOAWAY),
    (
        "connect",
        ("status 403", "call  denied forbidden_form 403 forbidden_form"),
    ),
    ("extended-connect", RESET),
    (
        "star-path",
        ("status 403", "call * denied ambiguous_path 403 ambiguous_path"),
    ),
    ("absolute-path", RESET),
    (
        "dotted-path",
        (
            "status 403",
            "call /dotted/../path denied ambiguous_path 403 ambiguous_path",
        ),
    ),
    (
        "encoded-path",
        (
            "status 403",
            "call /encoded%2fpath denied ambiguous_path 403 ambiguous_path",
        ),
    ),
    (
        "double-path",
        (
            "status 403",
            "call //double denied ambiguous_path 403 ambiguous_path",
        ),
    ),
    // A fragment is cut off before anything looks at the path: what is matched is what is sent.
    ("fragment", ("status 200", "call /fragment completed - 200 -")),
    ("blank", RESET),
    (
        "trace",
        (
            "status 403",
            "call /malformed denied forbidden_form 403 forbidden_form",
        ),
    ),
    (
        "http-scheme",
        (
            "status 421",
            "call /malformed denied name_mismatch 421 name_mismatch",
        ),
    ),
    ("odd-scheme", MALFORMED),
    (
        "no-authority",
        ("status 400", "call /malformed denied no_name 400 no_name"),
    ),
    ("host-alone", ("status 200", "call /host-alone completed - 200 -")),
    (
        "host-differs",
        (
            "status 421",
            "call /host-differs denied name_mismatch 421 name_mismatch",
        ),
    ),
    (
        "user",
        (
            "status 400",
            "call /user denied malformed_request 400 malformed_request",
        ),
    ),
    (
        "large",
        (
            "status 431",
            "call /large denied head_too_large 431 head_too_large",
        ),
    ),
    (
        "fields",
        (
            "status 431",
            "call /fields denied head_too_large 431 head_too_large",
        ),
    ),
    ("short-body", ("rst 1", "call /echo/short aborted - - -")),
];

const FRAMES: [(&str, End); 10] = [
    ("stream-0", GOAWAY),
    ("even-stream", GOAWAY),
    ("data-0", GOAWAY),
    ("data-idle", GOAWAY),
    ("reset-idle", GOAWAY),
    ("lone-continuation", GOAWAY),
    ("bad-hpack", GOAWAY),
    ("push", GOAWAY),
    ("window-0", ("goaway 3", "connection - failed - - http2")),
    ("long-frame", ("goaway 6", "connection - failed - - http2")),
];

const FLOODS: [(&str, End); 4] = [
    ("pings", FLOOD),
    ("settings", FLOOD),
    ("continuation", CALM),
    ("huge", CALM),
];

/// Each case has a connection and ends as it should.
fn check(settings: &str, cases: &[(&str, End)]) -> Result<()> {
    let (world, server) = start(settings)?;
    let names: Vec<_> = cases.iter().map(|(case, _)| *case).collect();
    let got = run(&world, &names)?;
    let records = records(&world, cases.len())?;
    for ((case, (expected, record)), found) in cases.iter().zip(&records) {
        assert_eq!(got[*case], *expected, "{case}");
        assert_eq!(shown(found), *record, "{case}: {found:?}");
        assert_eq!(found.text("workload"), "billing", "{case}");
    }
    let arrived = server.arrived()?;
    let paths: Vec<_> = arrived.iter().map(|one| one.path.as_str()).collect();
    assert!(
        paths
            .iter()
            .all(|path| ["/fragment", "/host-alone", "reset/echo/short"].contains(path)),
        "{paths:?}"
    );
    Ok(())
}

#[test]
fn a_request_that_breaks_http_2_is_refused_and_recorded_once() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    check("", &REQUESTS)
}

#[test]
fn a_frame_that_breaks_http_2_ends_the_connection_with_the_reason_and_one_record() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    check("", &FRAMES)
}

#[test]
fn a_flood_is_told_to_calm_down_and_recorded_once() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    check("[limits]\nh2_resets = 10\n", &FLOODS)
}

#[test]
fn a_head_that_unpacks_to_too_much_gets_431_and_the_connection_goes_on() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let (world, _server) = start("")?;
    assert_eq!(run(&world, &["bomb"])?["bomb"], "status 431, status 200");
    let records: Vec<_> = records(&world, 2)?.iter().map(shown).collect();
    assert_eq!(
        records,
        [
            "call - denied head_too_large 431 head_too_large",
            "call /bomb/after completed - 200 -"
        ]
    );
    Ok(())
}

#[test]
fn rapid_resets_are_cut_off_where_the_limit_says_and_other_clients_go_on() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    for limit in [10, 30] {
        let (world, _server) = start(&format!("[limits]\nh2_resets = {limit}\n"))?;
        let got = run(&world, &["resets"])?;
        assert_eq!(got["resets"], format!("goaway 11 after {}", limit + 1));
        let records = records(&world, limit + 2)?;
        let (flood, calls): (Vec<_>, Vec<_>) = records
            .iter()
            .partition(|record| record.text("kind") == "connection");
        assert_eq!(
            flood.iter().map(|record| shown(record)).collect::<Vec<_>>(),
            [FLOOD.1]
        );
        assert!(
            flood[0].text("error.message").contains("limits.h2_resets"),
            "{flood:?}"
        );
        for call in calls {
            assert_eq!(shown(call), "call /hang/resets aborted - 200 closed");
        }
        let got = run(&world, &["beside"])?;
        assert_eq!(got["beside"], "goaway 11, status 200, status 200");
    }
    Ok(())
}

#[test]
fn a_client_that_makes_the_agent_reset_streams_is_cut_off_too() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let settings = "[limits]\nh2_resets = 10\n";
    let (world, _server) = start(settings)?;
    assert_eq!(
        run(&world, &["made-resets"])?["made-resets"],
        "goaway 11 after 11"
    );
    let records = records(&world, 12)?;
    let shown: BTreeSet<_> = records.iter().map(shown).collect();
    assert_eq!(
        shown.into_iter().collect::<Vec<_>>(),
        ["call /hang/made aborted - 200 closed", CALM.1]
    );
    Ok(())
}

#[test]
fn resets_of_a_past_window_are_forgotten() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let settings = "[limits]\nh2_resets = 10\nh2_resets_window_seconds = 1\n";
    let (world, _server) = start(settings)?;
    assert_eq!(run(&world, &["patient"])?["patient"], "status 200");
    records(&world, 28)?;
    Ok(())
}

#[test]
fn a_client_that_takes_nothing_of_an_answer_loses_it_and_keeps_its_other_streams() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let (world, _server) = start("[limits]\nwrite_seconds = 1\n")?;
    assert_eq!(run(&world, &["stalled"])?["stalled"], "status 200, rst 8 None");
    let records: Vec<_> = records(&world, 1)?.iter().map(shown).collect();
    assert_eq!(records, ["call /big/stalled failed - 200 stalled"]);
    Ok(())
}

#[test]
fn a_head_that_does_not_end_in_time_ends_the_connection() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let (world, _server) = start("[limits]\nheaders_seconds = 1\n")?;
    assert_eq!(run(&world, &["slow-head"])?["slow-head"], "goaway 11");
    let records: Vec<_> = records(&world, 1)?.iter().map(shown).collect();
    assert_eq!(records, ["connection - denied head_timeout - head_timeout"]);
    Ok(())
}
