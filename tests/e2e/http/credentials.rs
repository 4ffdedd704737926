//! Which credentials the upstream sees: ours, byte for byte, and the client's own only where a rule says so.

use anyhow::Result;
use harness::{Arrived, World, require};

use super::{RAW, calls, python, shown};

/// One workload with a rule and a credential for each scheme, below a path of its own.
fn policy(world: &World) -> Result<String> {
    let mut rules = String::from("[[workload]]\nname = \"billing\"\n");
    let mut credentials = String::new();
    for (name, value, scheme) in [
        ("bearer", "b34rer", "\"bearer\""),
        ("basic", "p4ss:word", "\"basic\"\nusername = \"user\""),
        ("header", "h34der", "\"header\"\nname = \"X-Api-Key\""),
        ("query", "qu+ery", "\"query\"\nname = \"key\""),
    ] {
        let file = world.secret(name, value)?;
        rules += &format!(
            "[[workload.allow]]\nname = {name:?}\nhost = {RAW:?}\npaths = \"/{name}/{{rest..}}\"\nprivate = true\ncredential = {name:?}\n"
        );
        credentials += &format!(
            "[credential.{name}]\nhosts = [\"{RAW}:443\"]\nscheme = {scheme}\nsource = {{ file = {file:?} }}\n"
        );
    }
    rules += &format!(
        "[[workload.allow]]\nname = \"none\"\nhost = {RAW:?}\npaths = [\"/none/{{rest..}}\", \"/cookies/none\"]\nprivate = true\n"
    );
    rules += &format!(
        "[[workload.allow]]\nname = \"pass\"\nhost = {RAW:?}\npaths = \"/pass/{{rest..}}\"\nprivate = true\nclient_auth = \"pass\"\n"
    );
    rules += &format!(
        "[[workload.allow]]\nname = \"cookies\"\nhost = {RAW:?}\npaths = \"/cookies/with\"\nprivate = true\ncredential = \"bearer\"\n"
    );
    Ok(rules + &credentials)
}

fn target(one: &Arrived) -> &str {
    one.head.split(' ').nth(1).unwrap_or_default()
}

/// What clients send on every call: credentials of their own.
const OWN: &str = r#"
own = ["Authorization: Bearer own", "Cookie: session=own", "X-Api-Key: own", "Proxy-Authorization: Basic own", "X-Plain: kept"]
"#;

#[test]
fn the_upstream_sees_our_credential_and_none_of_the_clients() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = World::new()?;
    let upstream = world.scripted(RAW, Some(RAW))?;
    world.policy("http.toml", &policy(&world)?)?;
    world.start_agent()?;
    let script = format!(
        "{OWN}\nfor path in [\"bearer\", \"basic\", \"header\", \"query\", \"none\", \"pass\"]:\n    print(status(exchange(get(f\"/{{path}}/x?a=1&key=own&access_token=own&b=2\", *own))))\n"
    );
    assert_eq!(python(&world, &script)?, [200; 6]);
    let arrived = upstream.arrived()?;
    let expected: [(&str, &[&str], &[&str]); 6] = [
        ("/bearer/x?a=1&b=2", &["Bearer b34rer"], &[]),
        ("/basic/x?a=1&b=2", &["Basic dXNlcjpwNHNzOndvcmQ="], &[]),
        ("/header/x?a=1&b=2", &[], &["h34der"]),
        ("/query/x?a=1&b=2&key=qu%2Bery", &[], &[]),
        ("/none/x?a=1&b=2", &[], &[]),
        (
            "/pass/x?a=1&key=own&access_token=own&b=2",
            &["Bearer own"],
            &["own"],
        ),
    ];
    for (one, (wanted, authorization, key)) in arrived.iter().zip(expected) {
        assert_eq!(target(one), wanted);
        assert_eq!(one.fields("authorization"), authorization, "{one:?}");
        assert_eq!(one.fields("x-api-key"), key, "{one:?}");
        assert_eq!(one.fields("x-plain"), ["kept"], "{one:?}");
        assert_eq!(one.fields("proxy-authorization"), [""; 0], "{one:?}");
        let cookie: &[&str] = if wanted.starts_with("/pass/") {
            &["session=own"]
        } else {
            &[]
        };
        assert_eq!(one.fields("cookie"), cookie, "{one:?}");
    }
    let records = calls(&world, 6)?;
    let seen: Vec<_> = records
        .iter()
        .map(|record| shown(record, &["rule", "credential.name", "outcome"]))
        .collect();
    assert_eq!(
        seen,
        [
            "bearer bearer completed",
            "basic basic completed",
            "header header completed",
            "query query completed",
            "none - completed",
            "pass - completed",
        ]
    );
    let text = std::fs::read_to_string(world.audit_file())? + &world.agent()?.log();
    for secret in ["b34rer", "p4ss", "dXNlcj", "h34der", "qu+ery", "qu%2Bery"] {
        assert!(!text.contains(secret), "{secret} was written down");
    }
    Ok(())
}

#[test]
fn cookies_and_other_ways_in_do_not_come_back_with_a_credential() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = World::new()?;
    let _upstream = world.scripted(RAW, Some(RAW))?;
    world.policy("http.toml", &policy(&world)?)?;
    world.start_agent()?;
    let answers = python(
        &world,
        "for path in [\"with\", \"none\"]:\n    print(json.dumps(exchange(get(f\"/cookies/{path}\")).lower()))\n",
    )?;
    let answers: Vec<_> = answers
        .iter()
        .map(|answer| answer.as_str().unwrap_or_default())
        .collect();
    for answer in &answers {
        assert!(
            answer.contains("x-kept: yes") && !answer.contains("alt-svc"),
            "{answer}"
        );
        assert!(!answer.contains("x-hop"), "{answer}");
    }
    assert!(!answers[0].contains("set-cookie"), "{}", answers[0]);
    assert!(answers[1].contains("set-cookie: session=1"), "{}", answers[1]);
    Ok(())
}

#[test]
fn nothing_that_is_read_as_the_credentials_header_goes_beside_it_or_behind_the_body() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = World::new()?;
    let upstream = world.scripted(RAW, Some(RAW))?;
    let file = world.secret("house", "h0use")?;
    let policy = format!(
        "[[workload]]\nname = \"billing\"\n[[workload.allow]]\nhost = {RAW:?}\nprivate = true\nmethods = [\"POST\"]\ncredential = \"house\"\n[credential.house]\nhosts = [\"{RAW}:443\"]\nscheme = \"header\"\nname = \"X-House-Key\"\nsource = {{ file = {file:?} }}\n"
    );
    world.policy("http.toml", &policy)?;
    world.start_agent()?;
    let answers = python(
        &world,
        r#"
print(status(exchange(get("/a/up", "X-House-Key: own", "X_House_Key: own", "Transfer-Encoding: chunked",
    "Trailer: X-Sum, X-House-Key, X_House_Key", method="POST",
    body=chunk("abc") + "0\r\nX-House-Key: own\r\nX_House_Key: own\r\nX-Sum: 7\r\n\r\n"))))
"#,
    )?;
    assert_eq!(answers, [200]);
    let arrived = upstream.arrived()?;
    assert_eq!(arrived[0].fields("x-house-key"), ["h0use"]);
    assert_eq!(arrived[0].fields("x_house_key"), [""; 0]);
    assert_eq!(arrived[0].trailers, "x-sum: 7\r\n");
    Ok(())
}
