//! What policy answers: who may start commands and ask the agent, the same to a real call as to `callgate explain`,
//! and what goes out in `observe` mode.

use std::fs;
use std::process::{Child, Stdio};

use anyhow::{Context, Result};
use harness::launch::tool;
use harness::{Client, Output, Upstream, World, agent, assert_record, require, wait};
use serde_json::Value;

use crate::identity::{API, CODE, NOBODY, start, status, workload};

/// A managed curl; the last line of its output is the status.
fn curl(world: &World, args: &[&str]) -> Result<Output> {
    let fixed = [
        "curl",
        "-sS",
        "-o",
        "/dev/null",
        "-w",
        CODE,
        "--path-as-is",
        "-m",
        "10",
    ];
    world.workload("billing")?.run(fixed.iter().chain(args))
}

#[test]
fn a_managed_process_may_not_use_the_admin_socket() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let policy = workload("billing", "", "") + &workload("other", "", "");
    let world = start(&policy)?;
    let socket = world.dir().join("run/admin.sock");
    let socket = socket.to_str().context("a path that is not UTF-8")?;
    let ask = |client: &Client, method: &str, path: &str| {
        let url = format!("http://callgate{path}");
        client.run([
            "curl",
            "-sS",
            "-w",
            &format!("\n{CODE}"),
            "-X",
            method,
            "--unix-socket",
            socket,
            &url,
        ])
    };
    let managed = world.workload("billing")?;
    for (method, path) in [
        ("GET", "/v1/status"),
        ("POST", "/v1/reload"),
        ("POST", "/v1/enroll"),
    ] {
        let reply = ask(&managed, method, path)?;
        assert_eq!(status(&reply), 403, "{reply:?}");
        assert!(reply.stdout.contains("managed processes may not"), "{reply:?}");
    }
    let outside = ask(&world.unmanaged()?, "GET", "/v1/status")?;
    assert_eq!(status(&outside), 200, "{outside:?}");
    // Nor can one workload's process get into another.
    let (binary, config) = (agent::binary()?, world.config());
    let [binary, config] = [&binary, &config].map(|path| path.to_str().unwrap_or_default());
    let change = managed.run([
        binary,
        "exec",
        "--config",
        config,
        "--workload",
        "other",
        "--",
        "echo",
        "in",
    ])?;
    assert!(change.code() == Some(1) && change.stdout.is_empty(), "{change:?}");
    assert!(change.stderr.contains("managed processes may not"), "{change:?}");
    Ok(())
}

#[test]
fn exec_is_for_those_that_exec_by_names() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let policy = workload("nobodys", "", "")
        + &workload("by-user", "exec_by = { users = [\"nobody\"] }", "")
        + &workload("by-group", "exec_by = { groups = [\"nogroup\"] }", "");
    let world = start(&policy)?;
    let run = |workload: &str, uid: u32| world.workload(workload)?.user(uid).run(["echo", "in"]);
    for (workload, uid, may) in [
        ("nobodys", 0, true),
        ("nobodys", NOBODY, false),
        ("by-user", NOBODY, true),
        ("by-group", NOBODY, true),
        ("by-user", 1, false),
        ("by-group", 1, false),
    ] {
        let reply = run(workload, uid)?;
        assert_eq!(reply.code(), Some(i32::from(!may)), "{workload} {uid}: {reply:?}");
        assert_eq!(reply.stdout == "in\n", may, "{workload} {uid}: {reply:?}");
        assert_eq!(
            reply.stderr.contains("exec_by"),
            !may,
            "{workload} {uid}: {reply:?}"
        );
    }
    Ok(())
}

const RULES: &str = r#"
[[workload]]
name = "billing"
[[workload.allow]]
name = "charges"
host = "api.example.test"
methods = ["GET", "POST"]
paths = ["/v1/charges", "/v1/charges/{id}", "/v1/files/{rest..}"]
private = true
[[workload.allow]]
name = "by-query"
host = "api.example.test"
paths = "/v1/search"
query = { status = ["open", "closed"] }
private = true
[[workload.allow]]
name = "by-header"
host = "api.example.test"
paths = "/v1/jobs"
headers = { x-target = "Jobs.Run" }
private = true
[[workload.allow]]
name = "by-user"
host = "api.example.test"
paths = "/v1/user"
user = "nobody"
private = true
[[workload.deny]]
name = "no-refunds"
host = "api.example.test"
paths = ["/v1/charges/refund", "/v1/files/secret/{rest..}"]
[[workload.deny]]
name = "no-admin"
host = "api.example.test"
headers = { x-role = "admin" }
[[workload.deny]]
name = "no-debug"
host = "api.example.test"
query = { debug = "1" }
[[workload.deny]]
name = "no-list"
host = "api.example.test"
methods = "GET"
paths = "/v1/files/list"
"#;

/// Method, path and query, a header, and the rule that allows it or the reason that it is refused for.
type Case = (
    &'static str,
    &'static str,
    Option<&'static str>,
    Result<&'static str, &'static str>,
);

const MATCHERS: [Case; 15] = [
    ("GET", "/v1/search?status=open", None, Ok("by-query")),
    ("GET", "/v1/search?page=2&status=clos%65d", None, Ok("by-query")),
    ("GET", "/v1/search", None, Err("call_not_allowed")),
    ("GET", "/v1/search?status=all", None, Err("call_not_allowed")),
    (
        "GET",
        "/v1/search?status=open&status=all",
        None,
        Err("call_not_allowed"),
    ),
    ("POST", "/v1/jobs", Some("X-Target: Jobs.Run"), Ok("by-header")),
    (
        "POST",
        "/v1/jobs",
        Some("X-Target: jobs.run"),
        Err("call_not_allowed"),
    ),
    ("POST", "/v1/jobs", None, Err("call_not_allowed")),
    ("GET", "/v1/charges", Some("X-Role: user"), Ok("charges")),
    ("GET", "/v1/charges", Some("X-Role: ADMIN"), Err("deny_rule")),
    (
        "GET",
        "/v1/charges",
        Some("X-Role: user, admin"),
        Err("deny_rule"),
    ),
    ("GET", "/v1/charges?DEBUG=1", None, Err("deny_rule")),
    ("GET", "/v1/charges?debug%5B%5D=1", None, Err("deny_rule")),
    (
        "GET",
        "/v1/search?status=open&status%5B%5D=all",
        None,
        Err("call_not_allowed"),
    ),
    ("GET", "/v1/search?status=open&state=all", None, Ok("by-query")),
];

const PATHS: [Case; 12] = [
    ("GET", "/v1/charges", None, Ok("charges")),
    ("POST", "/v1/charges/ch_1", None, Ok("charges")),
    ("GET", "/v1/charges/%63h_1", None, Ok("charges")),
    ("GET", "/v1/files/a/b/c", None, Ok("charges")),
    ("DELETE", "/v1/charges", None, Err("call_not_allowed")),
    ("GET", "/v1/charges-admin", None, Err("call_not_allowed")),
    ("GET", "/v1/charges/refund", None, Err("deny_rule")),
    ("GET", "/v1/charges/REFUND", None, Err("deny_rule")),
    ("GET", "/v1/files/secret/x", None, Err("deny_rule")),
    ("HEAD", "/v1/files/list", None, Err("deny_rule")),
    ("GET", "/v1/files/../charges", None, Err("ambiguous_path")),
    ("GET", "/v1/user", None, Err("caller_not_allowed")),
];

/// Each case as a real call and as a question to `callgate explain`: status, exit code, rule and reason agree.
fn check(world: &World, cases: &[Case]) -> Result<()> {
    for (n, (method, target, header, expected)) in cases.iter().enumerate() {
        let case = format!("{method} {target} {header:?}");
        let url = format!("https://{API}{target}");
        let header = header.map_or_else(Vec::new, |header| vec!["-H", header]);
        // After `-X HEAD` it would wait for a body.
        let method_of = if *method == "HEAD" {
            vec!["-I"]
        } else {
            vec!["-X", method]
        };
        let reply = curl(
            world,
            &[method_of.as_slice(), &[&url], header.as_slice()].concat(),
        )?;
        let asked = [
            &["--json", "--workload", "billing", "--user", "0"],
            header.as_slice(),
            &[method, &url],
        ];
        let explained = world.agent()?.command("explain", &asked.concat())?;
        let document: Value =
            serde_json::from_str(&explained.stdout).with_context(|| format!("{explained:?}"))?;
        let record = wait::until("the call's record", wait::PATIENCE, || {
            let records = world.records().ok()?;
            records
                .into_iter()
                .filter(|record| record.text("kind") == "call")
                .nth(n)
        })?;
        match expected {
            Ok(rule) => {
                assert_eq!(
                    (status(&reply), explained.code()),
                    (200, Some(0)),
                    "{case}: {reply:?}"
                );
                assert_eq!(
                    (record.text("rule").as_str(), &document["rule"]),
                    (*rule, &(*rule).into()),
                    "{case}"
                );
            }
            Err(reason) => {
                assert_eq!(
                    (status(&reply), explained.code()),
                    (403, Some(1)),
                    "{case}: {reply:?}"
                );
                let reasons = (record.text("reason"), &document["reason"]);
                assert_eq!(reasons, ((*reason).to_owned(), &(*reason).into()), "{case}");
            }
        }
    }
    let passed = cases.iter().filter(|(.., expected)| expected.is_ok()).count();
    let arrived = wait::until("the upstream's log", wait::PATIENCE, || {
        world
            .server(API)
            .ok()?
            .log()
            .ok()
            .filter(|log| log.len() >= passed)
    })?;
    assert_eq!(arrived.len(), passed);
    Ok(())
}

#[test]
fn explain_agrees_with_what_a_call_gets_and_a_deny_wins() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    check(&start(RULES)?, &PATHS)
}

#[test]
fn queries_and_headers_are_matched_as_a_rule_says() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    check(&start(RULES)?, &MATCHERS)
}

#[test]
fn status_and_doctor_speak_json_and_their_exit_codes() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = start(&workload("billing", "", ""))?;
    let json = |output: &Output| {
        serde_json::from_str::<Value>(&output.stdout).with_context(|| format!("{output:?}"))
    };
    let good = world.agent()?.command("status", &["--json"])?;
    let document = json(&good)?;
    assert_eq!(good.code(), Some(0), "{good:?}");
    assert_eq!(
        (&document["audit_ok"], &document["perimeter_intact"]),
        (&true.into(), &true.into())
    );
    assert_eq!(document["workloads"][0]["name"], "billing");

    let binary = agent::binary()?;
    let binary = binary.to_str().context("a path that is not UTF-8")?;
    let doctor = world.unmanaged()?.run([binary, "doctor", "--json"])?;
    let document = json(&doctor)?;
    let checks = document["checks"].as_array().context("no checks")?;
    let any = |status: &str| checks.iter().any(|check| check["status"] == status);
    let code = if any("fail") { 3 } else { i32::from(any("warn")) };
    assert!(!checks.is_empty());
    assert_eq!(doctor.code(), Some(code), "{doctor:?}");
    assert_eq!(document["ok"], code == 0);

    world.stop_agent()?;
    let config = world.config();
    let config = config.to_str().context("a path that is not UTF-8")?;
    let status = |config: &str| {
        world
            .unmanaged()?
            .run([binary, "status", "--json", "--config", config])
    };
    assert_eq!(status(config)?.code(), Some(3));
    fs::write(config, "nonsense = 1\n")?;
    assert_eq!(status(config)?.code(), Some(2));
    Ok(())
}

/// An address of the public internet as policy sees it; in the sandbox it is the upstream's relay.
const PUBLIC: &str = "192.0.8.8";

const RELAY: &str = "
import asyncio, sys
async def copy(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()
async def serve(reader, writer):
    there = await asyncio.open_connection(sys.argv[2], 443)
    await asyncio.gather(copy(reader, there[1]), copy(there[0], writer), return_exceptions=True)
async def main():
    async with await asyncio.start_server(serve, sys.argv[1], 443) as server:
        await server.serve_forever()
asyncio.run(main())
";

/// Gives the API the address [`PUBLIC`], too: `observe` lets nothing out to private ones, the sandbox's own among
/// them.
fn relay(world: &World) -> Result<Child> {
    let there = world.server(API)?.v4().ip().to_string();
    world
        .outside()?
        .run(["ip", "addr", "add", &format!("{PUBLIC}/32"), "dev", "lo"])?
        .ok()?;
    tool(
        "ip".as_ref(),
        ["route", "add", &format!("{PUBLIC}/32"), "via", &there],
    )?;
    let mut command = world
        .outside()?
        .command(["/usr/bin/python3", "-c", RELAY, PUBLIC, &there]);
    let child = command
        .stderr(Stdio::inherit())
        .spawn()
        .context("can't start the relay")?;
    wait::until("the relay accepts connections", wait::PATIENCE, || {
        std::net::TcpStream::connect((PUBLIC, 443)).ok()
    })?;
    Ok(child)
}

#[test]
fn observe_lets_out_without_the_credential_and_says_so() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = World::new()?;
    world.upstream(Upstream::new(API).bearer("s3cret", "acme"))?;
    let file = world.secret("api", "s3cret")?;
    let rules = workload(
        "billing",
        "mode = \"observe\"",
        "paths = \"/v1/charges\"\ncredential = \"api\"",
    );
    let credential = format!(
        "[credential.api]\nhosts = [\"{API}:443\"]\nscheme = \"bearer\"\nsource = {{ file = {file:?} }}\n"
    );
    world.policy("policy.toml", &(rules + &credential))?;
    let inside = format!("{API}:443:{}", world.server(API)?.v4().ip());
    let public = format!("{API}:443:{PUBLIC}");
    // The agent knows the name at both.
    let hosts = world.dir().join("hosts");
    fs::write(&hosts, fs::read_to_string(&hosts)? + &format!("{PUBLIC} {API}\n"))?;
    world.start_agent()?;
    let mut relay = relay(&world)?;
    let call = |path: &str, more: &[&str]| {
        let url = format!("https://{API}{path}");
        curl(&world, &[more, &[url.as_str()]].concat()).map(|reply| status(&reply))
    };
    let own = "Authorization: Bearer own";
    assert_eq!(call("/v1/charges", &["--resolve", &inside, "-H", own])?, 200);
    assert_eq!(call("/v1/refunds", &["--resolve", &public, "-H", own])?, 401);
    assert_eq!(call("/v1/private", &["--resolve", &inside])?, 403);
    let allowed = assert_record!(
        world,
        "path" = "/v1/charges",
        "decision" = "allow",
        "credential.name" = "api"
    );
    assert!(allowed.field("reason").is_null(), "{allowed:?}");
    let observed = assert_record!(
        world,
        "path" = "/v1/refunds",
        "decision" = "observe",
        "reason" = "call_not_allowed",
        "outcome" = "completed",
        "status" = 401,
        "upstream" = format!("{PUBLIC}:443"),
    );
    assert!(observed.field("credential").is_null(), "{observed:?}");
    assert_record!(
        world,
        "path" = "/v1/private",
        "outcome" = "denied",
        "reason" = "private_address"
    );
    let log = wait::until("the upstream's log", wait::PATIENCE, || {
        world.server(API).ok()?.log().ok().filter(|log| log.len() >= 2)
    })?;
    let sent: Vec<_> = log.into_iter().map(|line| line.authorization).collect();
    assert_eq!(sent, ["Bearer s3cret", "Bearer own"]);
    relay.kill()?;
    relay.wait()?;
    Ok(())
}
