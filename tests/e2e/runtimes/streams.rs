//! Programs that keep a call open: WebSocket, server-sent events, gRPC.

use anyhow::Result;
use harness::require;

use super::*;

pub(super) const EVENTS: &str = "events.example.test";
pub(super) const GRPC: &str = "grpc.example.test";
pub(super) const GRPC_SERVER: &str = include_str!("../grpc/server.py");

/// The rows that this file runs.
pub(super) const ROWS: &[&str] = &[
    "Python websockets",
    "Server-sent events over Node fetch",
    "Node EventSource (package eventsource)",
    "Python gRPC",
    "Ruby gRPC",
];

pub(super) const CLIENTS: &[(&str, &str)] = &[
    ("talk.py", include_str!("clients/talk.py")),
    ("events.mjs", include_str!("clients/events.mjs")),
    ("eventsource.cjs", include_str!("clients/eventsource.cjs")),
    ("echo.py", include_str!("clients/echo.py")),
    ("echo.rb", include_str!("clients/echo.rb")),
];

#[test]
fn a_websocket_and_an_event_stream_pass_piece_by_piece() -> Result<()> {
    require!(Root, CgroupV2, Btf, Runtimes);
    let mut server = None;
    let host = Host::new(&[EVENTS], "", |world| {
        server = Some(world.scripted(EVENTS, Some(EVENTS))?);
        Ok(())
    })?;
    host.clients(CLIENTS)?;
    for way in WAYS {
        let talk = format!("python3 /opt/clients/talk.py wss://{EVENTS}/talk/{way:?}");
        let told = host.run(*way, &talk)?.ok()?;
        assert_eq!(told, "echoed: one\nechoed: two\n");
        // The server sends an event when the client has taken the one before.
        let read = format!("node /opt/clients/events.mjs https://{EVENTS} {way:?}");
        let told = host.run(*way, &read)?.ok()?;
        assert_eq!(told, "0\n1\n2\n");
        for (path, status) in [(format!("/talk/{way:?}"), 101), (format!("/events/{way:?}"), 200)] {
            host.0.expect_record(&[
                ("path", path.into()),
                ("outcome", "completed".into()),
                ("status", status.into()),
                ("credential.name", "api".into()),
                ("user", way.user().into()),
                ("unit", way.service().into()),
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

/// Its server cuts its first connection, ends its second, and tells it at the third that there is no more.
#[test]
fn an_event_source_that_loses_its_connection_goes_on_where_it_was() -> Result<()> {
    require!(Root, CgroupV2, Btf, Runtimes);
    let mut server = None;
    let host = Host::new(&[EVENTS], "", |world| {
        server = Some(world.scripted(EVENTS, Some(EVENTS))?);
        Ok(())
    })?;
    let server = server.context("it was started")?;
    host.clients(CLIENTS)?;
    for way in WAYS {
        let path = format!("/feed/{way:?}");
        let read = format!("node /opt/clients/eventsource.cjs https://{EVENTS}{path}");
        let output = host.run(*way, &read)?;
        let told = output.clone().ok()?;
        assert_eq!(told, "1 one\n2 two\n3 three\n", "{output:?}");

        let mut arrived = server.arrived()?;
        arrived.retain(|one| one.path == path);
        let went_on_after: Vec<_> = arrived.iter().map(|one| one.fields("last-event-id")).collect();
        assert_eq!(went_on_after, [vec![], vec!["2"], vec!["3"]], "{arrived:?}");
        for one in &arrived {
            assert_eq!(one.fields("authorization"), [format!("Bearer {TOKEN}")]);
        }

        let about = || -> Result<Vec<_>> {
            let mut records = host.0.records()?;
            records.retain(|one| one.text("path") == path);
            Ok(records)
        };
        wait::until("a record of each connection", wait::PATIENCE, || {
            (about().ok()?.len() >= arrived.len()).then_some(())
        })?;
        let records = about()?;
        let words = |one: &Record| ["outcome", "status", "error.source"].map(|name| one.text(name));
        let said: Vec<_> = records.iter().map(words).collect();
        let expected = [
            ["failed", "200", "upstream"],
            ["completed", "200", "-"],
            ["completed", "204", "-"],
        ];
        assert_eq!(said, expected, "{records:#?}");
        let connections: BTreeSet<_> = records.iter().map(|one| one.text("connection")).collect();
        assert_eq!(connections.len(), records.len(), "{records:#?}");
        called_by(&records, &[*way], None)?;
    }
    promises(&ROWS[2..3], "yes")
}

#[test]
fn grpc_clients_of_two_languages_call_and_stream() -> Result<()> {
    require!(Root, CgroupV2, Btf, Runtimes);
    let mut server = None;
    let host = Host::new(&[GRPC], "", |world| {
        server = Some(world.scripted_by(GRPC_SERVER, GRPC, Some(GRPC))?);
        Ok(())
    })?;
    host.clients(CLIENTS)?;
    for way in WAYS {
        for program in ["python3 /opt/clients/echo.py", "ruby /opt/clients/echo.rb"] {
            let told = host.run(*way, &format!("{program} {GRPC}:443"))?.ok()?;
            assert_eq!(told, "hello\na b c\n", "{program}");
        }
    }
    promises(&ROWS[3..], "yes")?;
    let calls = 2 * WAYS.len();
    for method in ["Unary", "Split"] {
        let records = wait::until("a record for each call", wait::PATIENCE, || {
            let mut records = host.0.records().ok()?;
            records.retain(|one| {
                let words = ["path", "protocol", "outcome", "credential.name"].map(|name| one.text(name));
                words == [&format!("/test.Echo/{method}"), "grpc", "completed", "api"]
            });
            (records.len() == calls).then_some(records)
        })?;
        called_by(&records, WAYS, None)?;
    }
    let arrived = server.context("it was started")?.arrived()?;
    assert_eq!(arrived.len(), calls);
    for one in arrived {
        assert_eq!(one.fields("authorization"), [format!("Bearer {TOKEN}")]);
    }
    Ok(())
}
