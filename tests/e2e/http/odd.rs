//! Requests that two parsers could read differently, and those over a limit.

use anyhow::{Context, Result};
use harness::require;

use super::{ALLOW, calls, python, shown, start};

/// How requests are refused: the answer's status, the record's reason and whose fault it is, and each request with its
/// name and its bytes as a Python expression.
struct Refusal {
    status: u64,
    reason: &'static str,
    source: &'static str,
    requests: &'static [(&'static str, &'static str)],
}

const MALFORMED: [Refusal; 2] = [
    Refusal {
        status: 400,
        reason: "malformed_request",
        source: "downstream",
        requests: &[
            ("a quote in the query", r#"get("/x/quote?a\"b")"#),
            (
                "cl-te",
                r#"get("/x/cl-te", "Content-Length: 5", "Transfer-Encoding: chunked", method="POST", body="0\r\n\r\n")"#,
            ),
            (
                "te-cl",
                r#"get("/x/te-cl", "Transfer-Encoding: chunked", "Content-Length: 5", method="POST", body="0\r\n\r\n")"#,
            ),
            (
                "two equal lengths",
                r#"get("/x/cl2", "Content-Length: 1", "Content-Length: 1", method="POST", body="a")"#,
            ),
            (
                "two lengths",
                r#"get("/x/cl-cl", "Content-Length: 1", "Content-Length: 2", method="POST", body="ab")"#,
            ),
            (
                "a list of lengths",
                r#"get("/x/cl-list", "Content-Length: 1, 1", method="POST", body="a")"#,
            ),
            (
                "a coding after chunked",
                r#"get("/x/te-id", "Transfer-Encoding: chunked, identity", method="POST", body="0\r\n\r\n")"#,
            ),
            (
                "another coding",
                r#"get("/x/te-x", "Transfer-Encoding: xchunked", method="POST", body="0\r\n\r\n")"#,
            ),
            (
                "a blank before the colon",
                r#"get("/x/blank", "Transfer-Encoding : chunked", method="POST", body="0\r\n\r\n")"#,
            ),
            ("bare LF", r#"get("/x/lf").replace("\r\n", "\n")"#),
            ("one bare LF", r#"get("/x/lf1", "A: b\nC: d")"#),
            ("obs-fold", r#"get("/x/fold", "A: b\r\n c")"#),
            ("NUL in a value", r#"get("/x/nul", "A: b\0c")"#),
            ("CR in a value", r#"get("/x/cr", "A: b\rc")"#),
            ("two hosts", r#"get("/x/host2", "Host: raw.example.test")"#),
            ("Connection names Host", r#"get("/x/conn", "Connection: Host")"#),
            ("HTTP/1.2", r#"get("/x/version").replace("HTTP/1.1", "HTTP/1.2")"#),
            ("a blank in the target", r#"get("/x/a b")"#),
            ("no colon", r#"get("/x/colon", "nonsense")"#),
            ("a target that is none", r#"get("/x/<a>")"#),
        ],
    },
    Refusal {
        status: 400,
        reason: "no_name",
        source: "policy",
        requests: &[(
            "no host",
            r#"get("/x/host0").replace("Host: raw.example.test\r\n", "")"#,
        )],
    },
];

const FORBIDDEN: [Refusal; 4] = [
    Refusal {
        status: 421,
        reason: "name_mismatch",
        source: "policy",
        requests: &[
            ("another host", r#"get("/x/other", host="other.example.test")"#),
            ("another port", r#"get("/x/port", host="raw.example.test:8443")"#),
            (
                "absolute form elsewhere",
                r#"get("https://other.example.test/x/abs")"#,
            ),
            (
                "absolute form in the clear",
                r#"get("http://raw.example.test/x/abs")"#,
            ),
        ],
    },
    Refusal {
        status: 403,
        reason: "forbidden_form",
        source: "policy",
        requests: &[
            ("CONNECT", r#"get("raw.example.test:443", method="CONNECT")"#),
            ("TRACE", r#"get("/x/trace", method="TRACE")"#),
            (
                "h2c",
                r#"get("/x/h2c", "Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABkAAQAAP__")"#,
            ),
        ],
    },
    Refusal {
        status: 403,
        reason: "ambiguous_path",
        source: "policy",
        requests: &[
            ("dots", r#"get("/x/../y")"#),
            ("encoded dots", r#"get("/x/%2e%2e/y")"#),
            ("two slashes", r#"get("/x//y")"#),
            ("a backslash", r#"get("/x\\y")"#),
            ("an encoded slash", r#"get("/x%2fy")"#),
            ("an encoded backslash", r#"get("/x%5cy")"#),
            ("an encoded NUL", r#"get("/x%00y")"#),
        ],
    },
    Refusal {
        status: 431,
        reason: "head_too_large",
        source: "downstream",
        requests: &[
            (
                "too many fields",
                r#"get("/x/many", *(f"A{n}: b" for n in range(99)))"#,
            ),
            ("too long a field", r#"get("/x/long", "A: " + "b" * 66000)"#),
            ("too long a line", r#"get("/x/" + "a" * 66000)"#),
        ],
    },
];

/// Each on a connection of its own: the status, one record with the reason, and nothing upstream.
fn refused(refusals: &[Refusal]) -> Result<()> {
    let (world, upstream) = start(ALLOW, "")?;
    let cases: Vec<_> = refusals
        .iter()
        .flat_map(|refusal| refusal.requests.iter().map(move |request| (refusal, request)))
        .collect();
    let requests: Vec<_> = cases.iter().map(|(_, (_, request))| *request).collect();
    let script = format!(
        "for request in [{}]:\n    print(json.dumps(exchange(request)))\n",
        requests.join(",\n")
    );
    let answers = python(&world, &script)?;
    let records = calls(&world, cases.len())?;
    for (((refusal, (what, _)), answer), record) in cases.iter().zip(&answers).zip(&records) {
        let answer = answer.as_str().context("no text")?;
        let status = refusal.status;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{what}: {answer}"
        );
        assert!(answer.contains("application/problem+json"), "{what}: {answer}");
        assert!(
            answer.contains(&record.text("id")),
            "{what}: {answer}\n{record:?}"
        );
        assert_eq!(record.field("status"), status, "{what}: {record:?}");
        assert_eq!(
            shown(record, &["outcome", "reason", "error.source"]),
            format!("denied {} {}", refusal.reason, refusal.source),
            "{what}: {record:?}"
        );
    }
    assert_eq!(upstream.arrived()?, []);
    Ok(())
}

#[test]
fn what_two_parsers_read_differently_is_refused_and_recorded() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    refused(&MALFORMED)
}

#[test]
fn what_is_never_passed_or_too_large_is_refused_and_recorded() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    refused(&FORBIDDEN)
}

#[test]
fn what_is_forwarded_has_one_form() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let (world, upstream) = start(ALLOW, "")?;
    let answers = python(
        &world,
        r#"
for request in [
    get("https://raw.example.test/a/absolute?q=%41", host="RAW.example.test."),
    get("/a/%63%7Eased%20x"),
    get("/a/hop", "Connection: X-Hop, keep-alive", "X-Hop: 1", "Keep-Alive: 5", "Proxy-Connection: x", "TE: gzip"),
    get("/a/override", "X-HTTP-Method-Override: DELETE", "X-Original-URL: /denied/x", "X_Rewrite_Url: /denied/x"),
    get("/a/chunked", "Transfer-Encoding: chunked", method="POST", body=chunk("abc") + "0\r\n\r\n"),
]:
    print(status(exchange(request)))
"#,
    )?;
    assert_eq!(answers, [200, 200, 200, 200, 200]);
    let arrived = upstream.arrived()?;
    let line = |n: usize| {
        arrived[n]
            .head
            .split("\r\n")
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    assert_eq!(line(0), "GET /a/absolute?q=%41 HTTP/1.1");
    assert_eq!(line(1), "GET /a/c~ased%20x HTTP/1.1");
    for one in &arrived {
        assert_eq!(one.fields("host"), ["raw.example.test"], "{one:?}");
        for name in ["x-hop", "keep-alive", "proxy-connection", "te", "connection"] {
            assert!(one.fields(name).is_empty(), "{name}: {one:?}");
        }
        for name in ["x-http-method-override", "x-original-url", "x_rewrite_url"] {
            assert!(one.fields(name).is_empty(), "{name}: {one:?}");
        }
        assert!(one.fields("content-length").len() + one.fields("transfer-encoding").len() <= 1);
    }
    assert_eq!(arrived[4].body, 3);
    let records = calls(&world, 5)?;
    assert_eq!(
        shown(&records[1], &["path", "decision", "rule"]),
        "/a/c~ased%20x allow calls"
    );
    assert_eq!(shown(&records[4], &["bytes_up", "outcome"]), "3 completed");
    Ok(())
}

#[test]
fn pipelined_requests_are_decided_and_recorded_one_by_one() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let (world, upstream) = start(ALLOW, "")?;
    let answers = python(
        &world,
        r#"
def keep(path, *fields, method="GET", body=""):
    return get(path, *fields, method=method, body=body).replace("Connection: close\r\n", "")
all = keep("/a/1") + keep("/denied/2") + keep("/a/3", "Content-Length: 5", method="POST", body="GET /") \
    + keep("/a/4", "Transfer-Encoding: chunked", method="POST", body=chunk("GET /denied/9 HTTP/1.1") + "0\r\n\r\n") \
    + keep("/a/5", "A : b") + keep("/a/6")
print(json.dumps([part.split(" ")[0] for part in exchange(all).split("HTTP/1.1 ")[1:]]))
"#,
    )?;
    // Behind the malformed one nobody knows where the next begins.
    assert_eq!(answers, [serde_json::json!(["200", "403", "200", "200", "400"])]);
    let records = calls(&world, 5)?;
    let seen: Vec<_> = records
        .iter()
        .map(|record| shown(record, &["path", "status", "decision"]))
        .collect();
    let expected = [
        "/a/1 200 allow",
        "/denied/2 403 deny",
        "/a/3 200 allow",
        "/a/4 200 allow",
        "/a/5 400 deny",
    ];
    assert_eq!(seen, expected);
    let paths: Vec<_> = upstream.arrived()?.into_iter().map(|one| one.path).collect();
    assert_eq!(paths, ["/a/1", "/a/3", "/a/4"]);
    Ok(())
}

#[test]
fn a_head_that_comes_too_slowly_or_not_in_whole_is_recorded() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let settings = "[limits]\nheaders_seconds = 1";
    let (world, upstream) = start(ALLOW, settings)?;
    let answers = python(
        &world,
        r#"
print(json.dumps(exchange("GET /a/slow HTTP/1.1\r\nHost: raw")))
sock = connect()
sock.sendall(b"GET /a/gone HTTP/1.1\r\nHost: raw")
leave(sock)
"#,
    )?;
    assert!(
        answers[0]
            .as_str()
            .is_some_and(|text| text.starts_with("HTTP/1.1 408 ")),
        "{answers:?}"
    );
    let records = calls(&world, 2)?;
    let seen: Vec<_> = records
        .iter()
        .map(|record| shown(record, &["path", "outcome", "error.source", "error.kind"]))
        .collect();
    let expected = [
        "/a/slow denied downstream head_timeout",
        "/a/gone aborted downstream closed",
    ];
    assert_eq!(seen, expected);
    assert_eq!(upstream.arrived()?, []);
    Ok(())
}
