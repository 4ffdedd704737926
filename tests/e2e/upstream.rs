//! Connections to upstreams: whose calls share one, whose TLS sessions are resumed, and what a certificate that proves
//! nothing costs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result};
use harness::ca::Flaw;
use harness::{Access, Upstream, World, assert_record, require, wait};

use crate::identity::{API, CODE, status};

/// Two workloads. Each may call `/WORKLOAD/a` with credential `a`, `/WORKLOAD/b` with `b` and `/WORKLOAD/none` without.
fn policy(world: &World) -> Result<String> {
    let mut text = String::new();
    for name in ["a", "b"] {
        let secret = world.secret(name, &format!("secret-{name}"))?;
        text += &format!(
            "[credential.{name}]\nhosts = [\"{API}:443\"]\nscheme = \"bearer\"\nsource = {{ file = {secret:?} }}\n"
        );
    }
    for workload in ["billing", "shipping"] {
        text += &format!("[[workload]]\nname = {workload:?}\n");
        for (rule, credential) in [
            ("a", "credential = \"a\""),
            ("b", "credential = \"b\""),
            ("none", ""),
        ] {
            text += &format!(
                "[[workload.allow]]\nname = {rule:?}\nhost = {API:?}\npaths = [\"/{workload}/{rule}\"]\n\
                 private = true\n{credential}\n"
            );
        }
    }
    Ok(text)
}

fn start(upstream: Upstream) -> Result<World> {
    let mut world = World::new()?;
    world.upstream(upstream)?;
    world.policy("upstream.toml", &policy(&world)?)?;
    // Each data thread has connections of its own; one makes them countable.
    world.settings("threads = 1");
    world.start_agent()?;
    Ok(world)
}

/// One curl, hence one client's connection, for all of these rules' paths.
fn calls(world: &World, workload: &str, version: &str, rules: &[&str]) -> Result<()> {
    let urls: Vec<_> = rules
        .iter()
        .map(|rule| format!("https://{API}/{workload}/{rule}"))
        .collect();
    let mut words = vec!["curl", "-sS", "-f", "-m", "10", version];
    for url in &urls {
        words.extend(["-o", "/dev/null", url]);
    }
    world.workload(workload)?.run(words)?.ok().map(drop)
}

/// What each of the upstream's connections carried: paths with the authorization that came with them.
fn carried(log: &[Access]) -> BTreeMap<&str, BTreeSet<(&str, &str)>> {
    let mut connections: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for one in log {
        let seen = connections.entry(one.connection.as_str()).or_default();
        seen.insert((one.uri.as_str(), one.authorization.as_str()));
    }
    connections
}

/// The upstream's log once it has this many lines.
fn logged(world: &World, count: usize) -> Result<Vec<Access>> {
    wait::until("the upstream's log", wait::PATIENCE, || {
        let log = world.server(API).ok()?.log().ok()?;
        (log.len() >= count).then_some(log)
    })
}

#[test]
fn calls_share_a_connection_with_those_of_their_workload_and_credential_alone() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    for version in ["--http1.1", "--http2"] {
        let world = start(Upstream::new(API))?;
        for _ in 0..2 {
            calls(
                &world,
                "billing",
                version,
                &["a", "b", "a", "none", "b", "a", "none"],
            )?;
            calls(&world, "shipping", version, &["a", "none", "a"])?;
        }
        let log = logged(&world, 20)?;
        let carried = carried(&log);
        let seen: BTreeSet<_> = carried.values().flatten().copied().collect();
        assert_eq!(
            seen.into_iter().collect::<Vec<_>>(),
            [
                ("/billing/a", "Bearer secret-a"),
                ("/billing/b", "Bearer secret-b"),
                ("/billing/none", ""),
                ("/shipping/a", "Bearer secret-a"),
                ("/shipping/none", ""),
            ],
            "{version}"
        );
        assert!(
            carried.values().all(|calls| calls.len() == 1),
            "{version}: {carried:?}"
        );
        assert_eq!(
            carried.len(),
            5,
            "{version}: each kind of call has one connection: {carried:?}"
        );
    }
    Ok(())
}

#[test]
fn a_new_version_of_a_credential_has_new_connections() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start(Upstream::new(API))?;
    for version in ["--http1.1", "--http2"] {
        let old = format!("Bearer old-{version}");
        let new = format!("Bearer new-{version}");
        for (value, expected) in [(&old, &old), (&new, &new)] {
            world.secret("a", value.strip_prefix("Bearer ").context("no bearer")?)?;
            wait::until("the new value is used", wait::PATIENCE, || {
                calls(&world, "billing", version, &["a"]).ok()?;
                let log = world.server(API).ok()?.log().ok()?;
                log.iter()
                    .any(|one| one.authorization == **expected)
                    .then_some(())
            })?;
        }
        let log = world.server(API)?.log()?;
        let carried = carried(&log);
        assert!(carried.values().all(|calls| calls.len() == 1), "{carried:?}");
        let with = |value: &str| {
            carried
                .values()
                .filter(|calls| calls.contains(&("/billing/a", value)))
                .count()
        };
        assert_eq!((with(&old), with(&new)), (1, 1), "{carried:?}");
    }
    let versions: BTreeSet<_> = world
        .records()?
        .iter()
        .map(|record| record.text("credential.version"))
        .collect();
    assert!(versions.len() >= 4, "{versions:?}");
    Ok(())
}

#[test]
fn tls_sessions_are_resumed_within_a_workload_and_not_across() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = World::new()?;
    let log = world.dir().join("upstream").join(API).join("tls.log");
    // Each answer ends its connection.
    let once = format!(
        "keepalive_timeout 0; access_log {} tls; return 200;",
        log.display()
    );
    let format = "$request_uri $ssl_session_reused $ssl_early_data";
    world.upstream(
        Upstream::new(API)
            .http1()
            .location("/", &once)
            .log_format("tls", format),
    )?;
    world.policy("upstream.toml", &policy(&world)?)?;
    world.settings("threads = 1");
    world.start_agent()?;
    for workload in ["billing", "shipping"] {
        for _ in 0..3 {
            calls(&world, workload, "--http1.1", &["none"])?;
        }
    }
    let lines = wait::until("six calls", wait::PATIENCE, || {
        let text = fs::read_to_string(&log).ok()?;
        let lines: Vec<_> = text.lines().map(|line| line.trim().to_owned()).collect();
        (lines.len() >= 6).then_some(lines)
    })?;
    assert_eq!(
        lines,
        [
            "/billing/none . -",
            "/billing/none r -",
            "/billing/none r -",
            "/shipping/none . -",
            "/shipping/none r -",
            "/shipping/none r -",
        ]
    );
    Ok(())
}

#[test]
fn an_upstream_that_does_not_prove_its_name_gets_nothing_and_the_client_a_502() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    for (upstream, why) in [
        (
            Upstream::new(API).certificate_of("other.example.test"),
            "it is for another name",
        ),
        (Upstream::new(API).flawed(Flaw::Expired), "it has expired"),
        (
            Upstream::new(API).flawed(Flaw::NotYetValid),
            "it is not valid yet",
        ),
        (
            Upstream::new(API).flawed(Flaw::SelfSigned),
            "no trusted root has issued it",
        ),
        (
            Upstream::new(API).flawed(Flaw::ForClients),
            "it may not be used for this",
        ),
    ] {
        let world = start(upstream)?;
        for (version, spoken) in [("--http1.1", "h1"), ("--http2", "h2")] {
            let url = format!("https://{API}/billing/a");
            let words = ["curl", "-sS", "-w", CODE, "-m", "10", version, "-d", "body", &url];
            let reply = world.workload("billing")?.run(words)?;
            assert_eq!(status(&reply), 502, "{why}: {reply:?}");
            assert!(
                reply
                    .stdout
                    .contains("urn:callgate:upstream:upstream_certificate"),
                "{reply:?}"
            );
            let record = assert_record!(
                world,
                "kind" = "call",
                "protocol" = spoken,
                "decision" = "allow",
                "outcome" = "failed",
                "status" = 502,
                "error.source" = "upstream",
                "error.kind" = "upstream_certificate"
            );
            let message = record.text("error.message");
            assert!(message.contains(why) && message.contains(API), "{message}");
        }
        assert_eq!(world.server(API)?.log()?, [], "{why}");
        for text in [fs::read_to_string(world.audit_file())?, world.agent()?.log()] {
            assert!(!text.contains("secret-a"), "{text}");
        }
    }
    Ok(())
}

#[test]
fn no_call_is_lost_when_the_upstream_closes_connections_under_load() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    for version in ["--http1.1", "--http2"] {
        let world = start(Upstream::new(API).requests_per_connection(30))?;
        let urls = format!("https://{API}/billing/none?[1-120]");
        let words = [
            "curl",
            "-sS",
            "-m",
            "20",
            "-Z",
            "--parallel-max",
            "10",
            version,
            "-w",
            CODE,
            "-o",
            "/dev/null",
            &urls,
        ];
        let reply = world.workload("billing")?.run(words)?;
        let codes: Vec<_> = reply.stdout.split_whitespace().collect();
        let good = codes.iter().filter(|code| **code == "200").count();
        assert_eq!((codes.len(), good), (120, 120), "{version}: {reply:?}");
        let log = logged(&world, 120)?;
        assert_eq!(log.len(), 120, "none was sent twice");
        assert!(carried(&log).len() >= 4, "{version}");
        let records = wait::until("a record of each call", wait::PATIENCE, || {
            let mut records = world.records().ok()?;
            records.retain(|record| record.text("outcome") == "completed");
            (records.len() >= 120).then_some(records)
        })?;
        assert_eq!(records.len(), 120, "{version}");
    }
    Ok(())
}
