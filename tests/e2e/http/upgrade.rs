//! WebSocket: the only switch of protocols that passes.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result};
use harness::{require, wait};
use serde_json::json;

use super::{ALLOW, PRELUDE, python, record, shown, start};

const SHAKE: &str = r#"
def shake(path):
    return get(path, "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==").replace("Connection: close", "Connection: Upgrade")

def first(request):
    sock = connect()
    sock.sendall(request.encode())
    return sock.recv(65536).decode("latin-1")
"#;

#[test]
fn a_websocket_passes_both_ways_and_is_counted() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let (world, upstream) = start(ALLOW, "")?;
    let script = format!(
        r#"{SHAKE}
sock = connect()
sock.sendall(shake("/ws/a").encode())
head = sock.recv(65536).decode("latin-1")
print(status(head))
frames = b"\x81\x05hello\n\n\r\n\r\nGET /denied/x HTTP/1.1\n" * 100
sock.sendall(frames)
back = b""
while len(back) < len(frames):
    back += sock.recv(65536)
print(json.dumps([len(frames), back == frames, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head]))
leave(sock)
print(status(first(shake("/denied/ws"))))
print(status(first(shake("/switch/a"))))
print(status(exchange(get("/switch/b"))))
print(status(first(shake("/ws/b").replace("websocket", "other"))))
"#
    );
    let answers = python(&world, &script)?;
    let bytes = answers[1][0].clone();
    assert_eq!(
        answers,
        [
            json!(101),
            json!([bytes, true, true]),
            json!(403),
            json!(502),
            json!(502),
            json!(403)
        ]
    );
    let open = record(&world, "/ws/a")?;
    assert_eq!(
        shown(
            &open,
            &[
                "protocol",
                "status",
                "decision",
                "outcome",
                "bytes_up",
                "bytes_down"
            ]
        ),
        format!("ws 101 allow completed {bytes} {bytes}")
    );
    assert_eq!(
        shown(&record(&world, "/denied/ws")?, &["status", "outcome"]),
        "403 denied"
    );
    for path in ["/switch/a", "/switch/b"] {
        let refused = record(&world, path)?;
        assert_eq!(
            shown(&refused, &["status", "outcome", "error.source"]),
            "502 failed upstream"
        );
    }
    assert_eq!(
        shown(&record(&world, "/ws/b")?, &["status", "reason"]),
        "403 forbidden_form"
    );
    assert_eq!(upstream.arrived()?.len(), 3);
    Ok(())
}

#[test]
fn a_new_policy_closes_a_live_websocket_that_it_denies() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let (world, _upstream) = start(ALLOW, "")?;
    let script = format!(
        r#"{PRELUDE}{SHAKE}
sock = connect()
sock.sendall(shake("/ws/live").encode())
print(status(sock.recv(65536).decode("latin-1")), flush=True)
sock.settimeout(20)
try:
    print("ended" if sock.recv(1) == b"" else "went on")
except OSError as error:
    print("ended" if not isinstance(error, TimeoutError) else "went on")
"#
    );
    let mut command = world.workload("billing")?.command(["python3", "-c", &script]);
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("can't start python3")?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    assert_eq!(lines.next().transpose()?.as_deref(), Some("101"));
    world.policy("http.toml", &ALLOW.replace("/denied/{rest..}", "/ws/{rest..}"))?;
    world.reload()?;
    assert_eq!(lines.next().transpose()?.as_deref(), Some("ended"));
    harness::launch::wait_for(&mut child, wait::PATIENCE)?;
    let closed = record(&world, "/ws/live")?;
    assert_eq!(
        shown(&closed, &["protocol", "outcome", "reason"]),
        "ws denied revoked"
    );
    Ok(())
}
