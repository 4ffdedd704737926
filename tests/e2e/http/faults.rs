//! Upstreams that are down, wrong, slow or rude, told apart from denials; and plain HTTP.

use anyhow::Result;
use harness::{World, require};
use serde_json::json;

use super::{ALLOW, RAW, calls, python, record, shown, start};

const PLAIN: &str = "plain.example.test";

#[test]
fn faults_of_the_upstream_are_told_apart_from_denials() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = World::new()?;
    let _upstream = world.scripted(RAW, Some(RAW))?;
    let _wrong = world.scripted("wrong.example.test", Some("other.example.test"))?;
    drop(world.scripted("down.example.test", Some("down.example.test"))?);
    let mut policy = ALLOW.to_owned();
    for host in ["wrong", "down"] {
        policy +=
            &format!("[[workload.allow]]\nname = {host:?}\nhost = \"{host}.example.test\"\nprivate = true\n");
    }
    world.policy("http.toml", &policy)?;
    world.settings("[limits]\nanswer_seconds = 1");
    world.start_agent()?;
    let answers = python(
        &world,
        r#"
for path, host in [("/a/wrong", "wrong.example.test"), ("/a/down", "down.example.test"), ("/silent/a", HOST),
                   ("/garbage/a", HOST), ("/hang/a", HOST), ("/denied/a", HOST)]:
    answer = exchange(get(path, host=host), host=host)
    body = json.loads(answer.split("\r\n\r\n", 1)[1])
    print(json.dumps([status(answer), body["reason"], body["type"].split(":")[2]]))
"#,
    )?;
    assert_eq!(
        answers,
        [
            json!([502, "upstream_certificate", "upstream"]),
            json!([502, "upstream_connect", "upstream"]),
            json!([502, "upstream_protocol", "upstream"]),
            json!([502, "upstream_protocol", "upstream"]),
            json!([504, "upstream_timeout", "upstream"]),
            json!([403, "deny_rule", "denied"]),
        ]
    );
    let records = calls(&world, 6)?;
    let seen: Vec<_> = records
        .iter()
        .map(|record| {
            shown(
                record,
                &["status", "decision", "outcome", "error.source", "error.kind"],
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            "502 allow failed upstream upstream_certificate",
            "502 allow failed upstream upstream_connect",
            "502 allow failed upstream upstream_protocol",
            "502 allow failed upstream upstream_protocol",
            "504 allow failed upstream upstream_timeout",
            "403 deny denied policy deny_rule",
        ]
    );
    Ok(())
}

#[test]
fn a_kept_connection_that_the_upstream_closed_is_no_fault_and_nothing_is_sent_twice() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let (world, upstream) = start(ALLOW, "")?;
    // `once` answers as if it kept the connection, and closes; `silent` takes the request and closes.
    let answers = python(
        &world,
        r#"
for number in range(5):
    print(status(exchange(get(f"/once/{number}", "Content-Length: 1", method="POST", body="a"))))
print(status(exchange(get("/a/warm"))))
print(status(exchange(get("/silent/a"))))
"#,
    )?;
    // Only a close that crosses the request on its way may show, and then as what it is.
    assert!(
        answers[..5].iter().all(|status| *status == 200 || *status == 502),
        "{answers:?}"
    );
    assert!(
        answers[..5].iter().filter(|status| **status == 200).count() >= 4,
        "{answers:?}"
    );
    assert_eq!(answers[5..], [200, 502]);
    let arrived = upstream.arrived()?;
    for path in ["/once/0", "/once/1", "/once/2", "/once/3", "/once/4", "/silent/a"] {
        assert!(
            arrived.iter().filter(|one| one.path == path).count() <= 1,
            "{path} was sent twice"
        );
    }
    calls(&world, 7)?;
    Ok(())
}

#[test]
fn plain_http_needs_a_rule_and_carries_a_credential_only_by_name() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = World::new()?;
    let upstream = world.scripted(PLAIN, None)?;
    let file = world.secret("api", "s3cret")?;
    let rule = |scheme: &str, more: &str| {
        format!(
            "[[workload]]\nname = \"billing\"\n[[workload.allow]]\nname = \"calls\"\nhost = {PLAIN:?}\nport = 80\nprivate = true\n{scheme}\n{more}\n"
        )
    };
    world.policy("http.toml", &rule("", ""))?;
    world.start_agent()?;
    let call = |path: &str| {
        let lines = format!(
            "answer = exchange(get({path:?}, \"Authorization: Bearer own\", host={PLAIN:?}), host={PLAIN:?}, tls=False)\nprint(json.dumps([status(answer), \"plain_http\" in answer]))"
        );
        python(&world, &lines)
    };
    assert_eq!(call("/a/default")?, [json!([403, true])]);
    assert_eq!(
        shown(&record(&world, "/a/default")?, &["scheme", "reason"]),
        "http plain_http"
    );
    assert_eq!(upstream.arrived()?, []);

    world.policy("http.toml", &rule("scheme = \"http\"", ""))?;
    world.reload()?;
    assert_eq!(call("/a/allowed")?, [json!([200, false])]);
    assert_eq!(upstream.arrived()?[0].fields("authorization"), [""; 0]);

    // Only where rule and credential both name this place in the clear.
    let credential = |port: u16| {
        format!(
            "[credential.api]\nhosts = [\"{PLAIN}:{port}\"]\nscheme = \"bearer\"\nsource = {{ file = {file:?} }}\n"
        )
    };
    let named = rule("scheme = \"http\"", "credential = \"api\"");
    world.policy("http.toml", &(named.clone() + &credential(443)))?;
    assert!(world.reload().is_err(), "a credential for another port was taken");
    world.policy("http.toml", &(named + &credential(80)))?;
    world.reload()?;
    assert_eq!(call("/a/named")?, [json!([200, false])]);
    assert_eq!(upstream.arrived()?[1].fields("authorization"), ["Bearer s3cret"]);
    assert_eq!(record(&world, "/a/named")?.text("credential.name"), "api");
    Ok(())
}
