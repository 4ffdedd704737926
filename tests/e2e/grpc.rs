//! gRPC, by its own library on both sides: calls and streams pass with their trailers, and refusals are gRPC's own.

use std::collections::BTreeMap;

use anyhow::Result;
use harness::scripted::Scripted;
use harness::{World, assert_record, require, wait};

use crate::http2::run_script;
use crate::identity::API;

const CLIENT: &str = include_str!("grpc/client.py");
const SERVER: &str = include_str!("grpc/server.py");
const TOKEN: &str = "the-grpc-token";

const POLICY: &str = r#"
[[workload]]
name = "billing"
[[workload.allow]]
name = "echo"
host = "api.example.test"
methods = ["POST"]
paths = ["/test.Echo/{method}"]
credential = "grpc"
private = true
[[workload.allow]]
name = "down"
host = "down.example.test"
private = true
"#;

fn start() -> Result<(World, Scripted)> {
    let mut world = World::new()?;
    let server = world.scripted_by(SERVER, API, Some(API))?;
    world.absent("other.example.test")?;
    world.absent("down.example.test")?;
    let secret = world.secret("grpc", TOKEN)?;
    let credential = format!(
        "[credential.grpc]\nhosts = [\"{API}:443\"]\nscheme = \"bearer\"\nsource = {{ file = {secret:?} }}\n"
    );
    world.policy("grpc.toml", &format!("{POLICY}{credential}"))?;
    world.start_agent()?;
    Ok((world, server))
}

fn run(world: &World, cases: &[&str]) -> Result<BTreeMap<String, String>> {
    run_script(world, CLIENT, cases)
}

#[test]
fn calls_and_streams_pass_piece_by_piece_with_their_trailers_and_the_credential() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let (world, server) = start()?;
    let expected = [
        ("unary", "hello OK {'x-end': 'unary'}"),
        ("large", "True"),
        ("collect", "ab"),
        ("split", "[b'a', b'b', b'c']"),
        ("both", "01234 [] OK {'x-end': 'both'}"),
        ("fail", "NOT_FOUND: there is no such thing"),
        ("unknown", "UNIMPLEMENTED: Method not found!"),
        ("own-key", "hello OK {'x-end': 'unary'}"),
    ];
    let names: Vec<_> = expected.iter().map(|(case, _)| *case).collect();
    let got = run(&world, &names)?;
    for (case, expected) in expected {
        assert_eq!(got[case], expected, "{case}");
    }
    for path in ["Collect", "Split", "Both", "Fail", "Unknown"] {
        assert_record!(
            world,
            "path" = format!("/test.Echo/{path}"),
            "protocol" = "grpc",
            "outcome" = "completed",
            "status" = 200,
            "credential.name" = "grpc"
        );
    }
    let arrived = server.arrived()?;
    assert_eq!(arrived.len(), 3);
    for one in arrived {
        assert_eq!(one.fields("authorization"), [format!("Bearer {TOKEN}")]);
    }
    Ok(())
}

#[test]
fn a_refusal_is_a_grpc_status_with_the_reason_and_the_id_of_its_record() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let (world, server) = start()?;
    let got = run(&world, &["denied", "denied-stream", "no-rule", "down", "unary"])?;
    for (case, code, reason, path) in [
        (
            "denied",
            "PERMISSION_DENIED",
            "call_not_allowed",
            "/denied.Echo/Unary",
        ),
        (
            "denied-stream",
            "PERMISSION_DENIED",
            "call_not_allowed",
            "/denied.Echo/Both",
        ),
        (
            "no-rule",
            "PERMISSION_DENIED",
            "host_not_allowed",
            "/test.Echo/Unary",
        ),
    ] {
        let record = assert_record!(world, "reason" = reason, "path" = path, "protocol" = "grpc");
        assert_eq!(
            (record.text("outcome"), record.text("decision")),
            ("denied".into(), "deny".into())
        );
        let told = &got[case];
        assert!(
            told.starts_with(&format!("{code}: Refused by callgate")),
            "{told}"
        );
        let id = record.text("id");
        assert!(
            told.contains(reason) && told.contains(&format!("request {id}")),
            "{told} {id}"
        );
    }
    assert!(
        got["down"].starts_with("UNAVAILABLE: The call was allowed"),
        "{got:?}"
    );
    assert_record!(
        world,
        "authority" = "down.example.test:443",
        "outcome" = "failed",
        "error.source" = "upstream"
    );
    // The channel that was refused something goes on.
    assert_eq!(got["unary"], "hello OK {'x-end': 'unary'}");
    assert_eq!(server.arrived()?.len(), 1);
    Ok(())
}

#[test]
fn a_call_that_is_cancelled_or_runs_late_ends_upstream_too() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let (world, server) = start()?;
    let got = run(&world, &["cancel", "deadline"])?;
    assert!(got["cancel"].starts_with("CANCELLED"), "{got:?}");
    assert!(got["deadline"].starts_with("DEADLINE_EXCEEDED"), "{got:?}");
    wait::until("both calls end upstream", wait::PATIENCE, || {
        let arrived = server.arrived().ok()?;
        let ended = arrived.iter().filter(|one| one.path.ends_with("/ended"));
        (ended.count() == 2).then_some(())
    })?;
    let aborted = wait::until("both records", wait::PATIENCE, || {
        let records = world.records().ok()?;
        let found = records
            .iter()
            .filter(|record| record.text("path") == "/test.Echo/Hang");
        let found: Vec<_> = found.map(|record| record.text("outcome")).collect();
        (found.len() >= 2).then_some(found)
    })?;
    assert_eq!(aborted, ["aborted", "aborted"]);
    Ok(())
}
