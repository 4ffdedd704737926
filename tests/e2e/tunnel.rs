//! `tunnel` rules: what the rule names passes unread and without a credential; all else is refused or cut, in TLS's own
//! words, and recorded.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use anyhow::{Context, Result};
use harness::{Output, Record, Upstream, World, assert_record, require, wait};

use crate::identity::{API, CODE, status};

const CLIENT: &str = include_str!("tunnel/client.py");
const SILENT: &str = include_str!("tunnel/silent.py");
const OTHER: &str = "other.example.test";
const DOWN: &str = "down.example.test";
const QUIET: &str = "quiet.example.test";
const RAW: &str = "raw.example.test";

/// Tunnels to these hosts, and a credentialed rule for another.
fn policy(world: &World, tunnels: &[&str]) -> Result<String> {
    let secret = world.secret("other", "the-secret")?;
    let mut text = format!(
        "[credential.other]\nhosts = [\"{OTHER}:443\"]\nscheme = \"bearer\"\nsource = {{ file = {secret:?} }}\n\
         [[workload]]\nname = \"billing\"\n\
         [[workload.allow]]\nname = \"calls\"\nhost = {OTHER:?}\nprivate = true\ncredential = \"other\"\n"
    );
    for host in tunnels {
        text += &format!("[[workload.tunnel]]\nname = \"to-{host}\"\nhost = {host:?}\nprivate = true\n");
    }
    Ok(text)
}

fn start(settings: &str) -> Result<World> {
    let mut world = World::new()?;
    world.upstream(Upstream::new(API))?;
    world.upstream(Upstream::new(OTHER))?;
    world.absent(DOWN)?;
    let policy = policy(&world, &[API, DOWN, QUIET, RAW])?;
    world.policy("tunnel.toml", &policy)?;
    world.settings(settings);
    world.start_agent()?;
    Ok(world)
}

/// The authority that only the upstreams' own certificates chain to.
fn authority(world: &World) -> Result<String> {
    let path = world.dir().join("upstream/ca.pem");
    path.to_str()
        .map(ToOwned::to_owned)
        .context("a path that is not UTF-8")
}

/// A managed curl that trusts the upstream's own certificate alone.
fn pinned(world: &World, args: &[&str]) -> Result<Output> {
    let authority = authority(world)?;
    let fixed = [
        "curl",
        "-sS",
        "-o",
        "/dev/null",
        "-w",
        CODE,
        "-m",
        "10",
        "--cacert",
        &authority,
    ];
    world.workload("billing")?.run(fixed.iter().chain(args))
}

/// A connection that stays.
struct Held {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Held {
    fn open(world: &World, host: &str) -> Result<Self> {
        let authority = authority(world)?;
        let words = ["/usr/bin/python3", "-c", CLIENT, &authority, host];
        let mut child = world
            .workload("billing")?
            .command(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let input = child.stdin.take().context("no stdin")?;
        let output = BufReader::new(child.stdout.take().context("no stdout")?);
        Ok(Self { child, input, output })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    fn ask(&mut self, path: &str) -> Result<()> {
        writeln!(self.input, "{path}").context("the client is gone")
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn number(record: &Record, field: &str) -> u64 {
    record.field(field).as_u64().unwrap_or_default()
}

#[test]
fn a_tunnel_passes_tls_unread_to_the_named_host_and_puts_nothing_on() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start("")?;
    let url = format!("https://{API}/unread");
    for version in ["--http1.1", "--http2"] {
        let reply = pinned(&world, &[version, "-H", "Authorization: Bearer mine", &url])?;
        assert_eq!(status(&reply), 200, "{reply:?}");
    }
    let log = world.server(API)?.log()?;
    let seen: Vec<_> = log
        .iter()
        .map(|one| (one.protocol.as_str(), one.authorization.as_str()))
        .collect();
    assert_eq!(seen, [("HTTP/1.1", "Bearer mine"), ("HTTP/2.0", "Bearer mine")]);
    let records = wait::until("both records", wait::PATIENCE, || {
        let mut records = world.records().ok()?;
        records.retain(|record| record.text("kind") != "kernel_refusal");
        (records.len() >= 2).then_some(records)
    })?;
    assert_eq!(records.len(), 2, "{records:?}");
    for record in records {
        assert_eq!(
            [
                "kind",
                "outcome",
                "decision",
                "rule",
                "sni",
                "authority",
                "protocol",
                "upstream"
            ]
            .map(|field| record.text(field)),
            [
                "tunnel",
                "completed",
                "allow",
                "to-api.example.test",
                API,
                "api.example.test:443",
                "tls",
                &world.server(API)?.v4().to_string()
            ],
            "{record:?}"
        );
        assert_eq!(
            ["credential", "method", "path", "status"].map(|field| record.text(field)),
            ["-"; 4]
        );
        assert!(
            number(&record, "bytes_up") > 500 && number(&record, "bytes_down") > 500,
            "{record:?}"
        );
    }
    Ok(())
}

#[test]
fn a_tunnel_goes_where_the_agent_resolves_the_name_whatever_the_client_dialled() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start("")?;
    let elsewhere = world.server(OTHER)?.v4().ip();
    let resolve = format!("{API}:443:{elsewhere}");
    let reply = pinned(
        &world,
        &["--resolve", &resolve, &format!("https://{API}/elsewhere")],
    )?;
    assert_eq!(status(&reply), 200, "{reply:?}");
    assert_eq!(world.server(API)?.log()?.len(), 1);
    let record = assert_record!(world, "kind" = "tunnel", "outcome" = "completed");
    assert_eq!(record.text("original_destination"), format!("{elsewhere}:443"));
    assert_eq!(record.text("upstream"), world.server(API)?.v4().to_string());
    Ok(())
}

#[test]
fn what_no_tunnel_names_is_read_and_refused_and_a_client_that_pins_is_told_so_in_tls() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = World::new()?;
    world.upstream(Upstream::new(API))?;
    world.upstream(Upstream::new(OTHER))?;
    let policy = policy(&world, &["api.example.org"])?;
    world.policy("tunnel.toml", &policy)?;
    world.start_agent()?;
    let url = format!("https://{API}/refused");
    // One that takes the agent's certificate is told why it is refused.
    let reply =
        world
            .workload("billing")?
            .run(["curl", "-sS", "-o", "/dev/null", "-w", CODE, "-m", "10", &url])?;
    assert_eq!(status(&reply), 403);
    assert_record!(
        world,
        "kind" = "call",
        "path" = "/refused",
        "outcome" = "denied",
        "reason" = "host_not_allowed"
    );
    // One that does not ends the handshake itself.
    let reply = pinned(&world, &[&url])?;
    assert_eq!(reply.code(), Some(60), "{reply:?}");
    assert_record!(
        world,
        "kind" = "connection",
        "sni" = API,
        "outcome" = "failed",
        "error.kind" = "client_distrust"
    );
    let target = format!("{API}:443");
    let words = ["openssl", "s_client", "-connect", &target, "-noservername"];
    let reply = world.workload("billing")?.run(words)?;
    assert!(reply.stderr.contains("SSL alert number 112"), "{reply:?}");
    assert_record!(
        world,
        "kind" = "connection",
        "outcome" = "denied",
        "reason" = "no_name"
    );
    assert_eq!(world.server(API)?.log()?, []);
    Ok(())
}

#[test]
fn a_tunnel_to_a_host_that_is_not_there_ends_in_an_alert() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start("[limits]\nconnect_seconds = 1\n")?;
    let reply = pinned(&world, &[&format!("https://{DOWN}/")])?;
    assert!(reply.stderr.contains("alert internal error"), "{reply:?}");
    let record = assert_record!(world, "kind" = "tunnel", "sni" = DOWN, "outcome" = "failed");
    assert_eq!(record.text("error.source"), "upstream");
    assert_eq!(
        (number(&record, "bytes_up"), number(&record, "bytes_down")),
        (0, 0)
    );
    Ok(())
}

#[test]
fn a_tunnel_that_stands_still_or_whose_client_does_not_read_is_ended() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = World::new()?;
    let _silent = world.scripted_by(SILENT, QUIET, Some(QUIET))?;
    let _raw = world.scripted(RAW, Some(RAW))?;
    let policy = policy(&world, &[QUIET, RAW])?;
    world.policy("tunnel.toml", &policy)?;
    world.settings("[limits]\nidle_seconds = 2\nwrite_seconds = 1\n");
    world.start_agent()?;
    let mut quiet = Held::open(&world, QUIET)?;
    assert_eq!(quiet.line()?, "closed");
    let record = assert_record!(
        world,
        "kind" = "tunnel",
        "sni" = QUIET,
        "outcome" = "failed",
        "error.kind" = "idle"
    );
    assert!(
        number(&record, "bytes_up") > 200 && number(&record, "bytes_down") == 0,
        "{record:?}"
    );
    let mut stalled = Held::open(&world, RAW)?;
    assert_eq!(stalled.line()?, "open");
    stalled.ask("/big/50000000")?;
    let record = assert_record!(
        world,
        "kind" = "tunnel",
        "sni" = RAW,
        "outcome" = "failed",
        "error.kind" = "stalled"
    );
    assert!(
        record.text("error.message").contains("client took no bytes"),
        "{record:?}"
    );
    Ok(())
}

#[test]
fn a_policy_that_takes_the_rule_back_cuts_the_live_tunnel_and_one_that_keeps_it_does_not() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start("")?;
    let mut held = Held::open(&world, API)?;
    assert_eq!(held.line()?, "open");
    held.ask("/first")?;
    assert_eq!(held.line()?, "200");
    world.policy("tunnel.toml", &policy(&world, &[DOWN, API])?)?;
    world.reload()?;
    held.ask("/second")?;
    assert_eq!(held.line()?, "200");
    world.policy("tunnel.toml", &policy(&world, &[DOWN])?)?;
    world.reload()?;
    let record = assert_record!(world, "kind" = "tunnel", "sni" = API);
    assert_eq!(
        ["outcome", "reason", "error.kind"].map(|field| record.text(field)),
        ["denied", "revoked", "revoked"],
        "{record:?}"
    );
    assert!(
        number(&record, "bytes_up") > 500 && number(&record, "bytes_down") > 500,
        "{record:?}"
    );
    held.ask("/third").or_else(|error| {
        if held.child.try_wait()?.is_some() {
            Ok(())
        } else {
            Err(error)
        }
    })?;
    assert_eq!(held.line()?, "closed");
    assert_eq!(world.server(API)?.log()?.len(), 2);
    Ok(())
}
