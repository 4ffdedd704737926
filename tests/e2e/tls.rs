//! TLS between client and agent: every honest handshake is served, every other one ends in an alert and one record.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use harness::{Output, Record, Upstream, World, assert_record, require, wait};

use crate::http2::run_script;
use crate::identity::{API, CODE, status, workload};

const CLIENT: &str = include_str!("tls/client.py");

fn start(settings: &str) -> Result<World> {
    let mut world = World::new()?;
    world.upstream(Upstream::new(API))?;
    world.policy("tls.toml", &workload("billing", "", ""))?;
    world.settings(settings);
    world.start_agent()?;
    Ok(world)
}

/// Runs the client's cases in one managed process; what it got, by case.
fn run(world: &World, cases: &[&str]) -> Result<BTreeMap<String, String>> {
    run_script(world, CLIENT, cases)
}

/// `openssl s_client` as a managed process; its input ends when the handshake is over.
fn s_client(world: &World, args: &[&str]) -> Result<Output> {
    let target = format!("{API}:443");
    let mut words = vec!["openssl", "s_client", "-connect", &target];
    words.extend(args);
    world.workload("billing")?.run(words)
}

/// The records of connections that came to no call, once there are `count`; no more may be there.
fn refused(world: &World, count: usize) -> Result<Vec<Record>> {
    let records = wait::until("a record of each connection", wait::PATIENCE, || {
        let records = world.records().ok()?;
        let of_connections: Vec<_> = records
            .into_iter()
            .filter(|record| record.text("kind") == "connection")
            .collect();
        (of_connections.len() >= count).then_some(of_connections)
    })?;
    assert_eq!(records.len(), count, "{records:?}");
    Ok(records)
}

#[test]
fn a_client_hello_is_served_in_whatever_pieces_and_size_it_comes() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start("")?;
    let cases = [
        "whole",
        "bytes",
        "pieces",
        "records",
        "over-1k",
        "over-16k",
        "upper",
        "alpn-none",
        "alpn-both",
    ];
    let got = run(&world, &cases)?;
    for case in cases {
        assert_eq!(got[case], "status 200", "{case}: {got:?}");
        let record = assert_record!(
            world,
            "path" = format!("/{case}"),
            "sni" = API,
            "protocol" = "h1",
            "status" = 200
        );
        assert_eq!(record.text("outcome"), "completed");
    }
    assert_eq!(refused(&world, 0)?, []);
    Ok(())
}

#[test]
fn what_is_no_handshake_gets_an_alert_where_it_looks_like_tls_and_one_record() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start("[limits]\nclient_hello_seconds = 1\n")?;
    let malformed = ("alert 50", "failed", "downstream", "client_hello");
    let cases = [
        ("no-name", ("alert 112", "denied", "policy", "no_name")),
        ("address", ("alert 112", "denied", "policy", "no_name")),
        ("random", ("closed", "denied", "policy", "unknown_protocol")),
        ("sslv2", ("closed", "denied", "policy", "unknown_protocol")),
        ("truncated", ("alert 40", "aborted", "downstream", "closed")),
        ("record-too-long", malformed),
        ("no-hello", malformed),
        ("garbled", malformed),
        ("too-large", ("alert 50", "denied", "policy", "limit")),
        ("slow", ("alert 40", "failed", "downstream", "hello_timeout")),
        (
            "alpn-unknown",
            (
                "refused: [SSL] tlsv1 alert no application protocol",
                "failed",
                "downstream",
                "handshake",
            ),
        ),
    ];
    for (nth, (case, (got, outcome, source, kind))) in cases.into_iter().enumerate() {
        assert_eq!(run(&world, &[case])?[case], got, "{case}");
        let record = refused(&world, nth + 1)?.remove(nth);
        let words = ["outcome", "error.source", "error.kind"].map(|field| record.text(field));
        assert_eq!(words, [outcome, source, kind], "{case}: {record:?}");
        assert_eq!(record.text("workload"), "billing", "{case}");
    }
    Ok(())
}

#[test]
fn tls_1_2_and_1_3_are_spoken_sessions_resumed_and_no_early_data_taken() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start("")?;
    let session = world.dir().join("session");
    let session = session.to_str().context("a path that is not UTF-8")?;
    for version in ["-tls1_2", "-tls1_3"] {
        let get = format!("GET /{version} HTTP/1.1\\r\\nHost: {API}\\r\\nConnection: close\\r\\n\\r\\n");
        let ask = |keep: &str| {
            let script = format!(
                "printf '{get}' | openssl s_client -connect {API}:443 -servername {API} -verify_return_error \
                 -ign_eof {version} {keep} {session}"
            );
            world.workload("billing")?.run(["sh", "-c", &script])?.ok()
        };
        let first = ask("-sess_out")?;
        assert!(
            first.contains("New, TLSv1") && first.contains("HTTP/1.1 200"),
            "{first}"
        );
        let second = ask("-sess_in")?;
        assert!(
            second.contains("Reused, TLSv1") && second.contains("HTTP/1.1 200"),
            "{second}"
        );
        assert!(!second.contains("Max Early Data: 1"), "{second}");
    }
    let file = world.dir().join("early");
    fs::write(&file, "GET /early HTTP/1.1\r\n")?;
    let early = file.to_str().context("a path that is not UTF-8")?;
    let answer = s_client(
        &world,
        &[
            "-servername",
            API,
            "-tls1_3",
            "-sess_in",
            session,
            "-early_data",
            early,
        ],
    )?;
    let said = answer.stdout + &answer.stderr;
    assert!(
        said.contains("Early data was not sent") || said.contains("Early data was rejected"),
        "{said}"
    );
    assert!(
        !world
            .records()?
            .iter()
            .any(|record| record.text("path") == "/early")
    );
    let old = s_client(
        &world,
        &["-servername", API, "-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
    )?;
    assert!(old.stderr.contains("SSL alert number 40"), "{old:?}");
    assert_record!(
        world,
        "kind" = "connection",
        "outcome" = "failed",
        "error.source" = "downstream",
        "error.kind" = "handshake"
    );
    Ok(())
}

#[test]
fn a_client_that_does_not_trust_the_agent_is_recorded_as_such() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start("")?;
    let foreign = world.dir().join("upstream/ca.pem");
    let foreign = foreign.to_str().context("a path that is not UTF-8")?;
    let url = format!("https://{API}/distrust");
    for (nth, version) in ["1.2", "1.3"].into_iter().enumerate() {
        let reply = world.workload("billing")?.run([
            "curl",
            "-sS",
            "-m",
            "10",
            "--tls-max",
            version,
            "--cacert",
            foreign,
            &url,
        ])?;
        assert_eq!(reply.code(), Some(60), "{reply:?}");
        let record = refused(&world, nth + 1)?.remove(nth);
        let words = ["kind", "outcome", "error.source", "error.kind", "sni"].map(|field| record.text(field));
        assert_eq!(
            words,
            ["connection", "failed", "downstream", "client_distrust", API],
            "{record:?}"
        );
        assert!(
            record.text("error.message").contains("trust bundle"),
            "{record:?}"
        );
    }
    Ok(())
}

#[test]
fn the_leaf_is_for_the_exact_name_and_its_intermediate_for_no_other() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start("")?;
    let shown = s_client(
        &world,
        &["-servername", API, "-showcerts", "-verify_return_error"],
    )?
    .ok()?;
    let chain: Vec<_> = shown
        .split_inclusive("-----END CERTIFICATE-----")
        .filter_map(|part| part.split_once("-----BEGIN CERTIFICATE-----"))
        .map(|(_, body)| format!("-----BEGIN CERTIFICATE-----{body}\n"))
        .collect();
    assert_eq!(chain.len(), 2, "leaf and intermediate: {shown}");
    let text = |name: &str, pem: &str| -> Result<String> {
        let file = world.dir().join(name);
        fs::write(&file, pem)?;
        openssl(&["x509", "-noout", "-text", "-in", path(&file)?])
    };
    let leaf = text("leaf.pem", &chain[0])?;
    let names = leaf.split_once("Subject Alternative Name").context("no SAN")?.1;
    let names = names.lines().nth(1).unwrap_or_default().trim();
    assert_eq!(names, format!("DNS:{API}"));
    assert!(leaf.contains("CA:FALSE") || !leaf.contains("CA:TRUE"), "{leaf}");
    let intermediate = text("intermediate.pem", &chain[1])?;
    assert!(
        intermediate.contains("Name Constraints: critical"),
        "{intermediate}"
    );
    let permitted = intermediate.split_once("Permitted:").context("none permitted")?.1;
    assert_eq!(
        permitted.lines().nth(1).unwrap_or_default().trim(),
        format!("DNS:{API}")
    );
    assert!(intermediate.contains("pathlen:0"), "{intermediate}");
    Ok(())
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}

fn openssl(args: &[&str]) -> Result<String> {
    let output = Command::new("openssl").args(args).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    anyhow::ensure!(
        output.status.success(),
        "{}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    Ok(text(&output.stdout))
}

/// Status of a managed curl for this URL, with further arguments.
fn curl(world: &World, args: &[&str]) -> Result<u16> {
    let fixed = ["curl", "-sS", "-o", "/dev/null", "-w", CODE, "-m", "10"];
    Ok(status(&world.workload("billing")?.run(fixed.iter().chain(args))?))
}

#[test]
fn server_name_host_and_port_must_agree_on_http_1_and_2() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = World::new()?;
    world.upstream(Upstream::new(API))?;
    world.upstream(Upstream::new("other.example.test"))?;
    let other = "[[workload.allow]]\nname = \"other\"\nhost = \"other.example.test\"\nprivate = true\n";
    world.policy("tls.toml", &(workload("billing", "", "") + other))?;
    world.start_agent()?;
    for version in ["--http1.1", "--http2"] {
        for (path, host, got) in [
            ("same", "api.example.test", 200),
            ("port", "api.example.test:443", 200),
            ("upper", "API.Example.Test", 200),
            ("dot", "api.example.test.", 200),
            ("other", "other.example.test", 421),
            ("other-port", "api.example.test:8443", 421),
            ("address", "192.0.2.1", 400),
        ] {
            let path = format!("/{path}{version}");
            let header = format!("Host: {host}");
            let answer = curl(&world, &[version, "-H", &header, &format!("https://{API}{path}")])?;
            assert_eq!(answer, got, "{host} {version}");
            let record = assert_record!(world, "path" = path, "status" = got, "sni" = API);
            if got == 421 {
                assert_eq!(record.text("reason"), "name_mismatch");
            }
        }
    }
    let reached = world.server("other.example.test")?.log()?;
    assert!(reached.is_empty(), "{reached:?}");
    Ok(())
}

#[test]
fn a_session_is_resumed_for_the_name_that_it_was_made_for_alone() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = World::new()?;
    world.upstream(Upstream::new(API))?;
    world.policy("tls.toml", &workload("billing", "", ""))?;
    world.start_agent()?;
    let session = world.dir().join("session");
    let session = path(&session)?;
    for version in ["-tls1_2", "-tls1_3"] {
        let ask = |name: &str, keep: &str| {
            let get = format!("GET / HTTP/1.1\\r\\nHost: {name}\\r\\nConnection: close\\r\\n\\r\\n");
            let script = format!(
                "printf '{get}' | openssl s_client -connect {API}:443 -servername {name} -ign_eof {version} {keep} {session}"
            );
            world.workload("billing")?.run(["sh", "-c", &script])?.ok()
        };
        for (name, keep, expected) in [
            (API, "-sess_out", "New, TLSv1"),
            (API, "-sess_in", "Reused, TLSv1"),
            ("other.example.test", "-sess_in", "New, TLSv1"),
        ] {
            let said = ask(name, keep)?;
            assert!(said.contains(expected), "{version} {name}: {said}");
        }
    }
    Ok(())
}

#[test]
fn a_client_that_leaves_after_the_handshake_without_a_request_is_recorded_as_such() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start("")?;
    let url = format!("https://{API}/pinned");
    let pin = format!("sha256//{}=", "A".repeat(43));
    for (nth, version) in ["--http1.1", "--http2"].into_iter().enumerate() {
        let pinned = ["curl", "-sS", "-m", "10", version, "--pinnedpubkey", &pin, &url];
        let reply = world.workload("billing")?.run(pinned)?;
        assert_eq!(reply.code(), Some(90), "{reply:?}");
        let record = refused(&world, nth + 1)?.remove(nth);
        let words = ["outcome", "error.source", "error.kind", "sni"].map(|field| record.text(field));
        assert_eq!(words, ["aborted", "downstream", "no_request", API], "{record:?}");
        assert!(record.text("error.message").contains("`tunnel`"), "{record:?}");
        // One that makes a call has that call's record alone.
        let called = world.workload("billing")?.run(["curl", "-sS", version, &url])?;
        assert_eq!(called.code(), Some(0), "{called:?}");
        refused(&world, nth + 1)?;
    }
    Ok(())
}
