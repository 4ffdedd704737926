//! What is missing, broken or gone refuses calls; what was in force before a mistake stays; and all of it is over
//! when the cause is.

use std::fs::{self, Permissions};
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result};
use harness::launch::wait_for;
use harness::{Upstream, World, assert_record, require, wait};

use crate::audit::{call, call_until, download, only_download_record, start};
use crate::identity::{API, workload};

/// What curl exits with when it could not connect.
const COULD_NOT_CONNECT: Option<i32> = Some(7);
const TOKEN: &str = "tok_fail_closed_1";

#[test]
fn a_killed_agent_refuses_connections_and_a_new_one_records_what_was_under_way() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = start()?;
    let script = r#"echo ready; read -r go; exec curl -sS -m 5 -o /dev/null "$0""#;
    let mut waiting = world
        .workload("billing")?
        .command(["sh", "-c", script, &format!("https://{API}/while-dead")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut ready = [0; 6];
    waiting
        .stdout
        .as_mut()
        .context("no output")?
        .read_exact(&mut ready)?;
    let mut client = download(&world)?;
    world.kill_agent()?;
    let ended = wait_for(&mut client, wait::PATIENCE)?;
    assert!(!ended.success(), "{ended}");
    waiting.stdin.take().context("no input")?.write_all(b"go\n")?;
    assert_eq!(wait_for(&mut waiting, wait::PATIENCE)?.code(), COULD_NOT_CONNECT);
    world.start_agent()?;
    let after = call_until(&world, "/after/", 200)?;
    assert_eq!(only_download_record(&world, &after)?.text("outcome"), "aborted");
    let arrived = world.server(API)?.log()?;
    assert!(
        !arrived.iter().any(|line| line.uri == "/while-dead"),
        "{arrived:?}"
    );
    Ok(())
}

#[test]
fn a_second_agent_is_refused_and_the_first_goes_on() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let second = world.agent()?.command("run", &[])?;
    assert_eq!(second.code(), Some(3), "{second:?}");
    let said = format!("{}{}", second.stdout, second.stderr);
    assert!(said.contains("another agent holds"), "{said}");
    assert_eq!(call(&world, "/after")?, 200);
    Ok(())
}

#[test]
fn a_secret_file_that_is_missing_or_open_to_others_refuses_calls_until_it_is_mended() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = World::new()?;
    world.upstream(Upstream::new(API).bearer(TOKEN, "acme"))?;
    let file = world.dir().join("secrets/token");
    let policy = workload("billing", "", "credential = \"token\"")
        + &format!(
            "[credential.token]\nhosts = [\"{API}:443\"]\nscheme = \"bearer\"\nsource = {{ file = {file:?} }}\n"
        );
    world.policy("credential.toml", &policy)?;
    world.start_agent()?;
    assert_eq!(call(&world, "/missing")?, 503);
    assert_record!(
        world,
        "path" = "/missing",
        "status" = 503,
        "outcome" = "failed",
        "error.source" = "credential"
    );
    world.secret("token", TOKEN)?;
    call_until(&world, "/there/", 200)?;
    fs::set_permissions(&file, Permissions::from_mode(0o644))?;
    let refused = call_until(&world, "/open/", 503)?;
    assert_record!(
        world,
        "path" = refused.as_str(),
        "status" = 503,
        "error.source" = "credential"
    );
    fs::set_permissions(&file, Permissions::from_mode(0o600))?;
    call_until(&world, "/mended/", 200)?;
    let arrived = world.server(API)?.log()?;
    assert!(
        arrived
            .iter()
            .all(|line| line.uri != "/missing" && line.uri != refused),
        "{arrived:?}"
    );
    Ok(())
}

#[test]
fn a_bad_policy_leaves_the_last_good_one_in_force() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    world.policy("bad.toml", "[[workload]]\nname = \"other\"\nmethodz = 1\n")?;
    let reload = world.agent()?.command("reload", &[])?;
    assert_eq!(reload.code(), Some(1), "{reload:?}");
    assert!(reload.stdout.contains("bad.toml:3"), "{reload:?}");
    assert!(
        reload.stdout.contains("last good policy (generation 1)"),
        "{reload:?}"
    );
    let check = world.agent()?.command("check", &[])?;
    assert_eq!(check.code(), Some(2), "{check:?}");
    assert!(
        format!("{}{}", check.stdout, check.stderr).contains("bad.toml:3"),
        "{check:?}"
    );
    assert_eq!(call(&world, "/still")?, 200);
    assert_record!(world, "path" = "/still", "policy.generation" = 1);
    Ok(())
}

#[test]
fn a_reload_that_takes_the_rule_away_ends_the_call_under_way() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let mut client = download(&world)?;
    world.policy("audit.toml", &workload("billing", "", "paths = [\"/after\"]"))?;
    world.reload()?;
    let ended = wait_for(&mut client, wait::PATIENCE)?;
    assert!(!ended.success(), "{ended}");
    assert_eq!(call(&world, "/after")?, 200);
    let record = only_download_record(&world, "/after")?;
    assert_eq!(record.text("reason"), "revoked");
    assert_eq!(record.text("outcome"), "denied");
    Ok(())
}

#[test]
fn an_unmanaged_process_gets_nothing_from_a_listener() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let listeners = listeners()?;
    assert!(listeners.len() >= 2, "{listeners:?}");
    for address in &listeners {
        let mut stream = TcpStream::connect_timeout(address, wait::PATIENCE)?;
        stream.set_read_timeout(Some(wait::PATIENCE))?;
        // Either may fail where the agent closes at once.
        drop(stream.write_all(format!("GET /direct HTTP/1.1\r\nHost: {API}\r\n\r\n").as_bytes()));
        let mut got = Vec::new();
        let ended = stream.read_to_end(&mut got);
        let timed_out = ended.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        assert!(got.is_empty() && !timed_out, "{address}: {got:?}");
        let target = format!("{API}:443:{}:{}", bracketed(address), address.port());
        let url = format!("https://{API}/direct");
        let args = ["curl", "-sS", "-m", "10", "--connect-to", &target, &url];
        let over_tls = world.unmanaged()?.run(args)?;
        assert!(
            over_tls.code() != Some(0) && over_tls.stdout.is_empty(),
            "{address}: {over_tls:?}"
        );
    }
    assert_eq!(call(&world, "/after")?, 200);
    assert_record!(world, "path" = "/after");
    let arrived = world.server(API)?.log()?;
    assert!(arrived.iter().all(|line| line.uri != "/direct"), "{arrived:?}");
    Ok(())
}

#[test]
fn strangers_who_flood_a_listener_are_counted_in_few_records() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    const CONNECTIONS: u64 = 300;
    // What the agent writes one by one: so many at once, and so many in a second.
    const RECORDS: (u64, u64) = (64, 20);
    let world = start()?;
    let all = listeners()?;
    let listener = all.first().context("no listener")?;
    let started = Instant::now();
    let connect = |_| TcpStream::connect_timeout(listener, wait::PATIENCE);
    for mut stream in (0..CONNECTIONS).map(connect).collect::<io::Result<Vec<_>>>()? {
        stream.set_read_timeout(Some(wait::PATIENCE))?;
        // Reset or closed: refused in either case.
        drop(stream.read(&mut [0]));
    }
    let seconds = started.elapsed().as_secs() + 1;
    let mut written = 0;
    wait::until("every connection on record", wait::PATIENCE, || {
        let records = world.records().ok()?;
        let strangers = records.iter().filter(|one| one.text("reason") == "no_origin");
        let counts: Vec<u64> = strangers
            .map(|one| one.field("count").as_u64().unwrap_or(1))
            .collect();
        written = counts.len() as u64;
        (counts.iter().sum::<u64>() == CONNECTIONS).then_some(())
    })?;
    // And the sum of the others each second.
    let most = RECORDS.0 + (RECORDS.1 + 1) * seconds + 1;
    assert!(
        written <= most && written < CONNECTIONS,
        "{written} records in {seconds} s"
    );
    Ok(())
}

fn bracketed(address: &SocketAddr) -> String {
    if address.is_ipv6() {
        format!("[{}]", address.ip())
    } else {
        address.ip().to_string()
    }
}

/// All TCP listeners on loopback in the test's network namespace, where only the agent listens.
fn listeners() -> Result<Vec<SocketAddr>> {
    const LISTEN: &str = "0A";
    let mut found = Vec::new();
    for (file, ip) in [
        ("tcp", Ipv4Addr::LOCALHOST.into()),
        ("tcp6", Ipv6Addr::LOCALHOST.into()),
    ] {
        let table = fs::read_to_string(Path::new("/proc/thread-self/net").join(file))?;
        for line in table.lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (Some(local), Some(&LISTEN)) = (words.get(1), words.get(3)) else {
                continue;
            };
            let (_, port) = local.rsplit_once(':').context("no port")?;
            found.push(SocketAddr::new(ip, u16::from_str_radix(port, 16)?));
        }
    }
    Ok(found)
}
