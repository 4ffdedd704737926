//! Programs that keep a call open: WebSocket, server-sent events, gRPC.

use anyhow::Result;
use harness::require;

use super::*;

const EVENTS: &str = "events.example.test";
const GRPC: &str = "grpc.example.test";

/// The rows that this file runs.
pub(super) const ROWS: &[&str] = &[
    "Python websockets",
    "Server-sent events over Node fetch",
    "Python gRPC",
    "Ruby gRPC",
];

#[test]
fn a_websocket_and_an_event_stream_pass_piece_by_piece() -> Result<()> {
    require!(Root, CgroupV2, Btf, Runtimes);
    let mut server = None;
    let host = Host::new(&[EVENTS], "", |world| {
        server = Some(world.scripted(EVENTS, Some(EVENTS))?);
        Ok(())
    })?;
    let socket = host.client("talk.py", include_str!("clients/talk.py"))?;
    let events = host.client("events.mjs", include_str!("clients/events.mjs"))?;
    for way in WAYS {
        let told = host
            .run(*way, &format!("python3 {socket} wss://{EVENTS}/talk/{way:?}"))?
            .ok()?;
        assert_eq!(told, "echoed: one\nechoed: two\n");
        // The server sends an event when the client has taken the one before.
        let told = host
            .run(*way, &format!("node {events} https://{EVENTS} {way:?}"))?
            .ok()?;
        assert_eq!(told, "0\n1\n2\n");
        for (path, status) in [(format!("/talk/{way:?}"), 101), (format!("/events/{way:?}"), 200)] {
            host.0.expect_record(&[
                ("path", path.into()),
                ("outcome", "completed".into()),
                ("status", status.into()),
                ("credential.name", "api".into()),
            ])?;
        }
    }
    promises(&ROWS[..2], "yes")?;
    for one in server.context("it was started")?.arrived()? {
        assert_eq!(
            one.fields("authorization"),
            [format!("Bearer {TOKEN}")],
            "{one:?}"
        );
    }
    Ok(())
}

#[test]
fn grpc_clients_of_two_languages_call_and_stream() -> Result<()> {
    require!(Root, CgroupV2, Btf, Runtimes);
    let mut server = None;
    let host = Host::new(&[GRPC], "", |world| {
        server = Some(world.scripted_by(include_str!("../grpc/server.py"), GRPC, Some(GRPC))?);
        Ok(())
    })?;
    let python = host.client("echo.py", include_str!("clients/echo.py"))?;
    let ruby = host.client("echo.rb", include_str!("clients/echo.rb"))?;
    for way in WAYS {
        for program in ["python3", "ruby"] {
            let client = if program == "ruby" { &ruby } else { &python };
            let told = host.run(*way, &format!("{program} {client} {GRPC}:443"))?.ok()?;
            assert_eq!(told, "hello\na b c\n", "{program}");
        }
    }
    promises(&ROWS[2..], "yes")?;
    let calls = 2 * WAYS.len();
    for method in ["Unary", "Split"] {
        wait::until("a record for each call", wait::PATIENCE, || {
            let mut records = host.0.records().ok()?;
            records.retain(|one| {
                let words = ["path", "protocol", "outcome", "credential.name"].map(|name| one.text(name));
                words == [&format!("/test.Echo/{method}"), "grpc", "completed", "api"]
            });
            (records.len() == calls).then_some(())
        })?;
    }
    let arrived = server.context("it was started")?.arrived()?;
    assert_eq!(arrived.len(), calls);
    for one in arrived {
        assert_eq!(one.fields("authorization"), [format!("Bearer {TOKEN}")]);
    }
    Ok(())
}
