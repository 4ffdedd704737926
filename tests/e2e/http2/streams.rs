//! Streams that share a connection, end early or are taken back: each is decided and recorded by itself.

use std::collections::BTreeSet;
use std::process::Stdio;

use anyhow::Result;
use harness::{Scripted, Upstream, World, assert_record, require, wait};

use crate::identity::{API, status};

use super::{SERVER, policy, records, run, shown, start};

#[test]
fn a_hundred_streams_with_bodies_both_ways_and_trailers_share_a_connection() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let (world, server) = start("")?;
    assert_eq!(run(&world, &["streams"])?["streams"], "100 of 100");
    let records = records(&world, 100)?;
    let paths: BTreeSet<_> = records.iter().map(|record| record.text("path")).collect();
    assert_eq!(paths.len(), 100);
    for record in records {
        assert_eq!(
            ["outcome", "status", "protocol", "bytes_up", "bytes_down"].map(|field| record.text(field)),
            ["completed", "200", "h2", "20000", "20000"]
        );
    }
    let arrived = server.arrived()?;
    let peers: BTreeSet<_> = arrived.iter().flat_map(|one| one.fields("peer")).collect();
    assert_eq!(peers.len(), 1, "one connection upstream: {peers:?}");
    for one in arrived {
        assert_eq!((one.body, one.trailers.as_str()), (20000, "x-up: 1\r\n"));
        assert_eq!(one.fields("te"), ["trailers"]);
    }
    Ok(())
}

#[test]
fn allowed_and_denied_streams_of_one_connection_are_decided_each_by_itself() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let (world, server) = start("")?;
    let got = run(&world, &["mixed"])?;
    assert_eq!(got["mixed"], "['status 403'] ['status 200'] None");
    let records = records(&world, 40)?;
    for record in records {
        let denied = record.text("path").starts_with("/denied");
        let expected = if denied {
            ["denied", "403", "no"]
        } else {
            ["completed", "200", "calls"]
        };
        assert_eq!(
            ["outcome", "status", "rule"].map(|field| record.text(field)),
            expected
        );
    }
    let arrived = server.arrived()?;
    assert_eq!(arrived.len(), 20);
    assert!(
        arrived.iter().all(|one| one.path.starts_with("/echo")),
        "{arrived:?}"
    );
    Ok(())
}

#[test]
fn a_name_that_the_connection_is_not_for_and_a_stream_too_many_are_refused_alone() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let (world, _server) = start("")?;
    let got = run(&world, &["coalesced", "one-too-many"])?;
    assert_eq!(got["coalesced"], "status 200, status 421, status 200");
    assert_eq!(got["one-too-many"], "rst 7");
    let records: Vec<_> = records(&world, 104)?.iter().map(shown).collect();
    let count = |text: &str| records.iter().filter(|record| *record == text).count();
    assert_eq!(
        records[1],
        "call /coalesced/other denied name_mismatch 421 name_mismatch"
    );
    assert_eq!(count("call - denied limit - limit"), 1, "{records:#?}");
    assert_eq!(count("call /hang/many aborted - 200 closed"), 100);
    Ok(())
}

#[test]
fn an_upload_that_is_answered_early_is_stopped_and_the_connection_goes_on() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let (world, server) = start("")?;
    let got = run(&world, &["denied-upload", "early-upload"])?;
    assert_eq!(got["denied-upload"], "status 403, rst 0; status 403");
    assert_eq!(got["early-upload"], "status 200, rst 0; status 200");
    let records: Vec<_> = records(&world, 4)?.iter().map(shown).collect();
    assert_eq!(
        records,
        [
            "call /denied/upload denied deny_rule 403 deny_rule",
            "call /denied/upload-after denied deny_rule 403 deny_rule",
            "call /early/upload completed - 200 -",
            "call /early/upload-after completed - 200 -",
        ]
    );
    let denied = server
        .arrived()?
        .into_iter()
        .find(|one| one.path.contains("denied"));
    assert_eq!(denied, None);
    Ok(())
}

#[test]
fn a_stream_that_is_taken_back_in_whatever_phase_has_one_record_and_is_taken_back_upstream() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let (world, server) = start("")?;
    let cases = ["back-head", "back-body", "back-waiting", "back-answer"];
    let got = run(&world, &cases)?;
    assert!(got.values().all(|got| got == "status 200"), "{got:?}");
    run(&world, &["leave"])?;
    let records: Vec<_> = records(&world, 9)?.iter().map(shown).collect();
    for (nth, case) in cases.into_iter().enumerate() {
        let (path, status) = match case {
            "back-answer" => (format!("/hang/{case}"), "200 closed"),
            _ => (format!("/wait/{case}"), "- -"),
        };
        assert_eq!(records[2 * nth], format!("call {path} aborted - {status}"));
        if case != "back-head" {
            wait::until("the upstream's stream is reset", wait::PATIENCE, || {
                let arrived = server.arrived().ok()?;
                arrived
                    .iter()
                    .any(|one| one.path == format!("reset{path}"))
                    .then_some(())
            })?;
        }
    }
    Ok(())
}

#[test]
fn an_upstream_that_resets_its_stream_is_a_failed_call_and_no_more() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let (world, _server) = start("")?;
    // Whatever the upstream calls it, half an answer must not look like a whole one.
    for (case, path, told) in [
        ("server-reset", "/reset/1", "rst 2"),
        ("server-cancels", "/cancel/1", "rst 8"),
    ] {
        // The reset may overtake the answer's head.
        let got = &run(&world, &[case])?[case];
        assert!(got.ends_with(told), "{case}: {got}");
        let record = assert_record!(world, "path" = path, "outcome" = "failed", "status" = 200);
        assert_eq!(record.text("error.source"), "upstream", "{case}");
    }
    Ok(())
}

/// The upstream's connections that carried each path.
fn peers(server: &Scripted, path: &str) -> Result<BTreeSet<String>> {
    let arrived = server.arrived()?;
    let of_path = arrived.iter().filter(|one| one.path == path);
    Ok(of_path
        .flat_map(|one| one.fields("peer"))
        .map(ToOwned::to_owned)
        .collect())
}

#[test]
fn requests_that_the_upstream_did_not_read_may_be_sent_again_and_the_client_is_told_so() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let (world, server) = start("")?;
    let got = run(&world, &["goaway", "refuse"])?;
    assert_eq!(got["goaway"], "status 200, ['rst 7'], status 200");
    assert_eq!(got["refuse"], "rst 7");
    let records: Vec<_> = records(&world, 13)?.iter().map(shown).collect();
    let unread = records
        .iter()
        .filter(|record| record.ends_with("failed - - upstream_unread"));
    assert_eq!(unread.count(), 10, "{records:#?}");
    let before = peers(&server, "/goaway-before")?;
    assert_eq!(peers(&server, "/goaway")?, before);
    assert_ne!(peers(&server, "/goaway-after")?, before);
    Ok(())
}

#[test]
fn a_connection_on_which_the_upstream_says_nothing_gets_no_further_calls() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let (world, server) = start("[limits]\nanswer_seconds = 1\n")?;
    assert_eq!(run(&world, &["dead"])?["dead"], "status 504, status 200");
    assert_ne!(peers(&server, "/wait/dead")?, peers(&server, "/dead-after")?);
    Ok(())
}

#[test]
fn a_policy_that_takes_a_call_back_ends_its_stream_also_while_the_client_takes_nothing() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let (world, server) = start("")?;
    let words = ["/usr/bin/python3", "-c", super::CLIENT, API, "stalled"];
    let client = world
        .workload("billing")?
        .command(words)
        .stdout(Stdio::piped())
        .spawn()?;
    wait::until("the call is under way", wait::PATIENCE, || {
        let arrived = server.arrived().ok()?;
        arrived.iter().any(|one| one.path == "/big/stalled").then_some(())
    })?;
    let deny = "[[workload.deny]]\nname = \"big\"\nhost = \"api.example.test\"\npaths = \"/big/{rest..}\"\n";
    world.policy("http2.toml", &(policy() + deny))?;
    world.reload()?;
    let output = String::from_utf8(client.wait_with_output()?.stdout)?;
    assert!(output.contains("status 200, rst 8 None"), "{output}");
    let record = assert_record!(world, "path" = "/big/stalled", "outcome" = "denied");
    assert_eq!(record.text("reason"), "revoked");
    Ok(())
}

#[test]
fn streams_that_come_to_a_stop_hold_up_no_other_on_the_connection_either_way() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let (world, _server) = start("")?;
    let got = run(&world, &["beside-readers", "beside-writers"])?;
    assert_eq!(got["beside-readers"], "status 200 100");
    assert_eq!(got["beside-writers"], "status 200 100");
    Ok(())
}

#[test]
fn events_arrive_one_by_one_and_a_refused_grpc_call_has_nothing_but_a_head() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let (world, _server) = start("")?;
    let got = run(&world, &["events", "grpc-denied"])?;
    assert_eq!(
        got["events"],
        "status 200 text/event-stream ['data:0', 'data:1', 'data:2']"
    );
    let record = assert_record!(
        world,
        "path" = "/denied/Call",
        "protocol" = "grpc",
        "outcome" = "denied"
    );
    let id = record.text("id");
    let message = format!(
        "Refused by callgate: A deny rule of this workload forbids this call. (deny_rule, rule no, request {id})"
    );
    assert_eq!(
        got["grpc-denied"],
        format!("['200', 'application/grpc', '7'] None None {message}")
    );
    Ok(())
}

#[test]
fn http_2_and_http_1_are_translated_both_ways() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = World::new()?;
    let new = world.scripted_by(SERVER, API, Some(API))?;
    world.upstream(Upstream::new("other.example.test").http1())?;
    world.policy("http2.toml", &policy())?;
    world.start_agent()?;
    for (host, version, spoken) in [("other.example.test", "--http2", "h2"), (API, "--http1.1", "h1")] {
        let url = format!("https://{host}/translated");
        let words = [
            "curl",
            "-sS",
            "-o",
            "/dev/null",
            "-w",
            "%{http_version} %{http_code}",
            "-m",
            "10",
        ];
        let reply = world
            .workload("billing")?
            .run(words.iter().chain(&["-d", "body", version, &url]))?;
        assert_eq!(status(&reply), 0);
        let got = reply.ok()?;
        assert_eq!(got, format!("{} 200", if spoken == "h2" { "2" } else { "1.1" }));
        assert_record!(
            world,
            "path" = "/translated",
            "sni" = host,
            "protocol" = spoken,
            "status" = 200,
            "outcome" = "completed",
            "bytes_up" = 4
        );
    }
    assert_eq!(world.server("other.example.test")?.log()?[0].protocol, "HTTP/1.1");
    let arrived = new.arrived()?;
    assert_eq!((arrived.len(), arrived[0].body), (1, 4), "{arrived:?}");
    Ok(())
}

#[test]
fn a_refused_upload_is_a_refusal_to_clients_that_take_resets_for_failures() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let (world, _server) = start("")?;
    let url = format!("https://{API}/denied/curl");
    for body in ["short", "@/usr/bin/openssl"] {
        let curl =
            format!("curl -sS -o /dev/null -w %{{http_code}} -m 10 --http2 --data-binary {body} {url}");
        let script = format!("for i in $(seq 15); do {curl}; echo; done");
        let got = world.workload("billing")?.run(["sh", "-c", &script])?.ok()?;
        assert_eq!(got, "403\n".repeat(15), "{body}");
    }
    Ok(())
}
