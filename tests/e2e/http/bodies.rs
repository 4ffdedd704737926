//! Bodies and heads on their way through, both ways.

use std::fs;

use anyhow::{Context, Result};
use harness::{World, require, wait};
use serde_json::{Value, json};

use super::{ALLOW, calls, python, record, shown, start};

const END: [&str; 5] = ["status", "outcome", "bytes_up", "bytes_down", "error.source"];

#[test]
fn ten_megabytes_go_each_way_and_are_counted() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let (world, upstream) = start(ALLOW, "")?;
    let answers = python(
        &world,
        r#"
size = 10_000_000
answer = exchange(get("/a/up", f"Content-Length: {size}", method="POST", body="u" * size))
print(status(answer))
answer = exchange(get("/big/10000000"))
print(json.dumps([status(answer), len(answer.split("\r\n\r\n", 1)[1])]))
chunks = "".join(chunk("c" * 1000) for _ in range(5000)) + "0\r\n\r\n"
print(status(exchange(get("/a/chunked", "Transfer-Encoding: chunked", method="POST", body=chunks))))
"#,
    )?;
    assert_eq!(answers, [json!(200), json!([200, 10_000_000]), json!(200)]);
    let bodies: Vec<_> = upstream.arrived()?.iter().map(|one| one.body).collect();
    assert_eq!(bodies, [10_000_000, 0, 5_000_000]);
    let records = calls(&world, 3)?;
    assert_eq!(records[0].field("bytes_up"), 10_000_000);
    assert_eq!(shown(&records[1], &END), "200 completed 0 10000000 -");
    assert_eq!(records[2].field("bytes_up"), 5_000_000);
    Ok(())
}

/// The worker's resident memory in KiB.
fn resident(world: &World) -> Result<u64> {
    let output = world.agent()?.command("status", &["--json"])?;
    let document: Value = serde_json::from_str(&output.stdout)?;
    let pid = document["worker_pid"].as_u64().context("no worker")?;
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).context("no VmRSS")
}

#[test]
fn memory_stays_bounded_when_one_side_does_not_read() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let (world, upstream) = start(ALLOW, "")?;
    python(
        &world,
        "exchange(get('/a/warm'))\nexchange(get('/big/5000000'))\n",
    )?;
    let before = resident(&world)?;
    let file = world.dir().join("state-of-client");
    let script = format!(
        r#"{}
import os, threading, time
def report(text):
    with open({file:?} + ".new", "w") as out:
        out.write(text)
    os.rename({file:?} + ".new", {file:?})
# A client that does not read 200 MB.
down = connect()
down.sendall(get("/big/200000000").encode())
# An upstream that does not read 200 MB, until the other side has no room left.
up = connect()
up.sendall(get("/sink/up", "Content-Length: 200000000", method="POST").encode())
sent, piece = 0, b"u" * 65536
up.settimeout(1)
try:
    while sent < 200000000:
        up.sendall(piece[:min(len(piece), 200000000 - sent)])
        sent += len(piece)
except TimeoutError:
    pass
report(str(sent))
sys.stdin.read(1)
"#,
        super::PRELUDE
    );
    let mut command = world.workload("billing")?.command(["python3", "-c", &script]);
    let mut child = command
        .stdin(std::process::Stdio::piped())
        .spawn()
        .context("can't start python3")?;
    let sent: u64 = wait::until("both sides to stand still", wait::PATIENCE, || {
        fs::read_to_string(&file).ok()?.parse().ok()
    })?;
    let after = resident(&world)?;
    child.kill()?;
    child.wait()?;
    assert!(sent < 100_000_000, "{sent} bytes were taken by nobody");
    assert!(after < before + 8 * 1024, "{before} KiB grew to {after} KiB");
    let aborted = record(&world, "/big/200000000")?;
    assert_eq!(
        shown(&aborted, &["status", "outcome", "error.source"]),
        "200 aborted downstream"
    );
    drop(upstream);
    Ok(())
}

#[test]
fn trailers_pass_but_no_credential_in_them() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let (world, upstream) = start(ALLOW, "")?;
    let answers = python(
        &world,
        r#"
print(json.dumps(exchange(get("/trailers/a", "TE: trailers"))))
print(json.dumps(exchange(get("/trailers/b"))))
print(status(exchange(get("/a/up", "Transfer-Encoding: chunked", "Trailer: X-Sum, Authorization, X-Api-Key", method="POST",
    body=chunk("abc") + "0\r\nX-Sum: 7\r\nAuthorization: Bearer own\r\nX-Api-Key: own\r\n\r\n"))))
"#,
    )?;
    let asked = answers[0].as_str().unwrap_or_default();
    assert!(
        asked.ends_with("5\r\nhello\r\n0\r\nx-sum: 42\r\n\r\n"),
        "{asked:?}"
    );
    let unasked = answers[1].as_str().unwrap_or_default();
    assert!(unasked.ends_with("5\r\nhello\r\n0\r\n\r\n"), "{unasked:?}");
    assert_eq!(answers[2], 200);
    let arrived = upstream.arrived()?;
    assert_eq!(arrived[0].fields("te"), ["trailers"]);
    assert_eq!(arrived[2].trailers, "x-sum: 7\r\n");
    for one in calls(&world, 3)? {
        assert_eq!(one.text("outcome"), "completed");
    }
    Ok(())
}

#[test]
fn answers_without_a_body_and_interim_ones_leave_the_connection_in_step() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let (world, _upstream) = start(ALLOW, "")?;
    let answers = python(
        &world,
        r#"
import http.client
calls = http.client.HTTPSConnection(HOST, context=ssl.create_default_context())
for method, path in [("HEAD", "/status/200"), ("GET", "/status/204"), ("GET", "/status/304"), ("GET", "/hints/a"),
                     ("GET", "/denied/a"), ("POST", "/a/b"), ("GET", "/status/200")]:
    calls.request(method, path, body="body" if method == "POST" else None)
    answer = calls.getresponse()
    body = answer.read()
    print(json.dumps([answer.status, answer.getheader("Content-Length"), len(body) if method != "POST" else 0]))
"#,
    )?;
    let statuses: Vec<_> = answers.iter().map(|answer| answer[0].as_u64()).collect();
    assert_eq!(statuses, [200, 204, 304, 200, 403, 200, 200].map(Some));
    assert_eq!(answers[0], json!([200, "7", 0]));
    assert_eq!(answers[1], json!([204, null, 0]));
    assert_eq!(answers[3], json!([200, "11", 11]));
    assert_eq!(answers[6], json!([200, "7", 7]));
    let records = calls(&world, 7)?;
    let first = records[0].text("connection");
    assert!(
        records.iter().all(|record| record.text("connection") == first),
        "{records:?}"
    );
    assert_eq!(shown(&records[0], &END), "200 completed 0 0 -");
    assert_eq!(shown(&records[4], &END), "403 denied 0 0 policy");
    assert_eq!(records[5].field("bytes_up"), 4);
    Ok(())
}

#[test]
fn a_body_is_asked_for_only_when_it_will_be_forwarded() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let (world, upstream) = start(ALLOW, "")?;
    let answers = python(
        &world,
        r#"
for path in ["/a/expect", "/denied/expect"]:
    sock = connect()
    sock.sendall(get(path, "Expect: 100-continue", "Content-Length: 4", method="POST").encode())
    first = sock.recv(65536).decode()
    if status(first) == 100:
        sock.sendall(b"body")
        print(json.dumps([100, status(rest(sock))]))
    else:
        print(json.dumps([status(first)]))
"#,
    )?;
    assert_eq!(answers, [json!([100, 200]), json!([403])]);
    let arrived = upstream.arrived()?;
    assert_eq!(arrived.len(), 1);
    assert_eq!((arrived[0].body, arrived[0].fields("expect").len()), (4, 0));
    let records = calls(&world, 2)?;
    assert_eq!(shown(&records[1], &END), "403 denied 0 0 policy");
    Ok(())
}

#[test]
fn a_client_in_the_middle_of_its_upload_reads_the_answer() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let (world, upstream) = start(ALLOW, "")?;
    let answers = python(
        &world,
        r#"
size = 5_000_000
for path in ["/denied/upload", "/early/413", "/rude/413"]:
    sock = connect()
    # Like most clients, it gives up where it can't send.
    sock.sendall(get(path, f"Content-Length: {size}", method="POST", body="u" * size).encode())
    answer = rest(sock)
    print(json.dumps([status(answer), "<" in answer.split("\r\n\r\n")[1]]))
"#,
    )?;
    assert_eq!(
        answers,
        [json!([403, false]), json!([413, false]), json!([413, false])]
    );
    assert_eq!(upstream.arrived()?.len(), 2);
    assert_eq!(
        shown(&record(&world, "/denied/upload")?, &END),
        "403 denied 0 0 policy"
    );
    let early = record(&world, "/early/413")?;
    assert_eq!(
        shown(&early, &["status", "outcome", "bytes_down"]),
        "413 completed 5"
    );
    Ok(())
}

#[test]
fn bodies_shorter_than_announced_are_recorded_with_who_cut_them() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let (world, _upstream) = start(ALLOW, "")?;
    let answers = python(
        &world,
        r#"
print(json.dumps(exchange(get("/short/a"))))
print(json.dumps(exchange(get("/cut/a"))))
for fields, body in [("Content-Length: 100", "only this"), ("Transfer-Encoding: chunked", chunk("only this")), ("Transfer-Encoding: chunked", "3\nabc")]:
    sock = connect()
    sock.sendall(get("/a/up", fields, method="POST", body=body).encode())
    leave(sock) if "\n" not in body[:-2] else rest(sock)
"#,
    )?;
    let short = answers[0].as_str().unwrap_or_default();
    assert!(
        short.contains("Content-Length: 100\r\n") || short.contains("content-length: 100\r\n"),
        "{short:?}"
    );
    let cut = answers[1].as_str().unwrap_or_default();
    assert!(cut.contains("hello") && !cut.contains("0\r\n\r\n"), "{cut:?}");
    let records = calls(&world, 5)?;
    let seen: Vec<_> = records
        .iter()
        .map(|record| shown(record, &["path", "outcome", "error.source"]))
        .collect();
    assert_eq!(
        seen,
        [
            "/short/a failed upstream",
            "/cut/a failed upstream",
            "/a/up failed downstream",
            "/a/up failed downstream",
            "/a/up failed downstream",
        ]
    );
    assert_eq!(
        (records[0].field("bytes_down"), records[1].field("bytes_down")),
        (&json!(9), &json!(5))
    );
    Ok(())
}

#[test]
fn events_arrive_one_by_one() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let (world, _upstream) = start(ALLOW, "")?;
    // The upstream sends the next event only after the client has got the one before and says so.
    let answers = python(
        &world,
        r#"
sock = connect()
sock.settimeout(5)
sock.sendall(get("/events/e").encode())
seen = ""
for number in range(3):
    while f"data: {number}\n\n" not in seen:
        seen += sock.recv(65536).decode()
    print(number)
    exchange(get(f"/gate/e{number}"))
print(json.dumps(rest(sock)[-5:]))
"#,
    )?;
    assert_eq!(answers, [json!(0), json!(1), json!(2), json!("0\r\n\r\n")]);
    let events = record(&world, "/events/e")?;
    assert_eq!(shown(&events, &END), "200 completed 0 27 -");
    Ok(())
}
