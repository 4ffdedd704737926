//! A reload that takes a right back cuts what is under way, in whatever phase it is, and each call's one record says so.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Lines, Read as _, Write as _};
use std::process::{Child, ChildStdout, Stdio};

use anyhow::{Context, Result};
use harness::launch::wait_for;
use harness::{Upstream, World, require, wait};

use crate::http::{ALLOW, RAW, record, shown, start};
use crate::identity::{API, CODE, workload};

/// What is left of [`ALLOW`].
const TAKEN_BACK: &str = "[[workload]]\nname = \"billing\"\n[[workload.allow]]\nhost = \"raw.example.test\"\n\
    private = true\npaths = \"/after\"\n";

/// Listens, accepts, and never begins TLS; one line of its log for each connection.
const DEAF: &str = r#"
import json, select, socket, sys
addresses = zip(sys.argv[1:3], (socket.AF_INET, socket.AF_INET6))
servers = [socket.create_server((address, int(sys.argv[3])), family=family) for address, family in addresses]
kept = []
while True:
    kept.append(select.select(servers, [], [])[0][0].accept())
    with open(sys.argv[4], "a") as log:
        log.write(json.dumps({"path": "accepted", "head": "", "body": 0, "trailers": ""}) + "\n")
"#;

/// A managed curl that prints the status it got.
fn curl(world: &World, args: &[&str]) -> Result<Child> {
    let fixed = ["curl", "-sS", "-N", "-m", "30", "-o", "/dev/null", "-w", CODE];
    let mut command = world.workload("billing")?.command(fixed.iter().chain(args));
    let child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    child.spawn().context("can't start curl")
}

/// What it printed, once it has ended.
fn printed(child: &mut Child) -> Result<String> {
    wait_for(child, wait::PATIENCE)?;
    let mut text = String::new();
    child
        .stdout
        .take()
        .context("no output")?
        .read_to_string(&mut text)?;
    Ok(text.trim().to_owned())
}

fn take_back(world: &World) -> Result<()> {
    world.policy("http.toml", TAKEN_BACK)?;
    world.reload()
}

#[test]
fn an_upload_under_way_is_cut() -> Result<()> {
    const PIECE: usize = 1 << 20;
    require!(Root, CgroupV2, Btf, Agent);
    let (world, upstream) = start(ALLOW, "")?;
    let mut uploads = Vec::new();
    for version in ["--http1.1", "--http2"] {
        let url = format!("https://{RAW}/upload{version}");
        let mut child = curl(&world, &[version, "-H", "Expect:", "-T", "-", &url])?;
        // More than pipes and sockets hold: it goes through to the upstream.
        let input = child.stdin.as_mut().context("no input")?;
        for _ in 0..16 {
            input.write_all(&vec![b'x'; PIECE])?;
        }
        uploads.push((version, child));
    }
    take_back(&world)?;
    for (version, mut child) in uploads {
        let cut = record(&world, &format!("/upload{version}"))?;
        assert_eq!(shown(&cut, &["outcome", "reason"]), "denied revoked", "{version}");
        let sent = cut.field("bytes_up").as_u64().context("no bytes")?;
        assert!(sent > 8 * PIECE as u64, "{version} {sent}");
        // Until here it waits for more to send, and looks at nothing else.
        drop(child.stdin.take());
        let said = printed(&mut child)?;
        assert!(["403", "000"].contains(&said.as_str()), "{version} {said}");
    }
    assert!(upstream.arrived()?.is_empty(), "no upload arrived whole");
    Ok(())
}

#[test]
fn an_answer_that_streams_is_cut_in_both_protocols() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = crate::audit::start()?;
    let mut downloads = Vec::new();
    for version in ["--http1.1", "--http2"] {
        let file = world.dir().join(format!("got{version}"));
        let mut command = world.workload("billing")?.command(["curl", "-sS", "-N", version]);
        let url = format!("https://{API}/slow?{version}");
        let child = command
            .arg(&url)
            .stdout(File::create(&file)?)
            .stderr(Stdio::null())
            .spawn()
            .context("can't start curl")?;
        wait::until("the first bytes", wait::PATIENCE, || {
            fs::metadata(&file).ok().filter(|meta| meta.len() > 0)
        })?;
        downloads.push(child);
    }
    world.policy("audit.toml", &workload("billing", "", "paths = [\"/after\"]"))?;
    world.reload()?;
    for mut child in downloads {
        assert!(
            !wait_for(&mut child, wait::PATIENCE)?.success(),
            "its end is no good one"
        );
    }
    for protocol in ["h1", "h2"] {
        let cut = world.expect_record(&[("path", "/slow".into()), ("protocol", protocol.into())])?;
        assert_eq!(
            shown(&cut, &["status", "outcome", "reason"]),
            "200 denied revoked"
        );
        assert!(cut.field("bytes_down").as_u64() > Some(0), "{cut:?}");
    }
    Ok(())
}

/// A call's path, what its rule says before a reload and after it, and whether it goes on.
const CREDENTIALS: [(&str, &str, &str, bool); 6] = [
    ("kept", "credential = \"first\"", "credential = \"first\"", true),
    ("gained", "", "credential = \"first\"", true),
    ("lost", "credential = \"first\"", "", false),
    ("other", "credential = \"first\"", "credential = \"other\"", false),
    ("passed", "client_auth = \"pass\"", "client_auth = \"pass\"", true),
    ("stripped", "client_auth = \"pass\"", "", false),
];

#[test]
fn a_call_goes_on_only_with_the_credential_that_its_rule_still_has() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = World::new()?;
    let big = world.dir().join("upstream/big");
    File::create(&big)?.set_len(4 << 20)?;
    let slow = format!("limit_rate 16k; alias {};", big.display());
    world.upstream(Upstream::new(API).location("~ ^/slow/", &slow))?;
    let policy = |world: &World, rule: &dyn Fn(&str, &str) -> String| -> Result<()> {
        let mut text = String::from("[[workload]]\nname = \"billing\"\n");
        for (path, before, after, _) in CREDENTIALS {
            let (at, rule) = (format!("/slow/{path}"), rule(before, after));
            text += &format!("[[workload.allow]]\nhost = {API:?}\npaths = {at:?}\nprivate = true\n{rule}\n");
        }
        for name in ["first", "other"] {
            let file = world.secret(name, name)?;
            text += &format!(
                "[credential.{name}]\nhosts = \"{API}:443\"\nscheme = \"bearer\"\nsource = {{ file = {file:?} }}\n"
            );
        }
        world.policy("credentials.toml", &text)
    };
    policy(&world, &|before, _| before.to_owned())?;
    world.start_agent()?;
    let mut downloads = Vec::new();
    let versions = [("--http1.1", "h1"), ("--http2", "h2")];
    for ((path, _, _, kept), (version, protocol)) in CREDENTIALS
        .into_iter()
        .flat_map(|case| versions.map(|version| (case, version)))
    {
        let file = world.dir().join(format!("{path}-{protocol}"));
        let url = format!("https://{API}/slow/{path}");
        let curl = ["curl", "-sS", "-N", version, &url];
        let mut command = world.workload("billing")?.command(curl);
        let child = command.stdout(File::create(&file)?).stderr(Stdio::null());
        let child = child.spawn().context("can't start curl")?;
        let length = move || fs::metadata(&file).map_or(0, |meta| meta.len());
        wait::until("the first bytes", wait::PATIENCE, || (length() > 0).then_some(()))?;
        downloads.push((path, protocol, kept, child, length));
    }
    policy(&world, &|_, after| after.to_owned())?;
    world.reload()?;
    for (path, protocol, kept, child, length) in &mut downloads {
        if *kept {
            let (had, more) = (length(), format!("more for {path} over {protocol}"));
            wait::until(&more, wait::PATIENCE, || (length() > had + 65536).then_some(()))?;
            assert!(child.try_wait()?.is_none(), "{path} goes on");
            child.kill()?;
        }
        let ended = wait_for(child, wait::PATIENCE)?;
        assert!(!ended.success(), "{path} over {protocol}");
        let path = format!("/slow/{path}");
        let call =
            world.expect_record(&[("path", path.as_str().into()), ("protocol", (*protocol).into())])?;
        let revoked = call.text("outcome") == "denied" && call.text("reason") == "revoked";
        assert_eq!(revoked, !*kept, "{call:?}");
    }
    Ok(())
}

#[test]
fn a_client_that_takes_nothing_loses_its_connection() -> Result<()> {
    const LARGE: u64 = 256 << 20;
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = World::new()?;
    let large = world.dir().join("upstream/large");
    File::create(&large)?.set_len(LARGE)?;
    let alias = format!("alias {};", large.display());
    world.upstream(Upstream::new(API).location("= /large", &alias))?;
    world.policy("billing.toml", &workload("billing", "", ""))?;
    world.start_agent()?;
    let mut stopped = Vec::new();
    for version in ["--http1.1", "--http2"] {
        let url = format!("https://{API}/large");
        let script = format!("curl -sS -N {version} {url} | (head -c 100000; kill -STOP $$; sleep 60)");
        let mut command = world.workload("billing")?.command(["sh", "-c", &script]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut child = child.context("can't start curl")?;
        child
            .stdout
            .as_mut()
            .context("no output")?
            .read_exact(&mut [0; 100_000])?;
        stopped.push(child);
    }
    world.policy("billing.toml", &workload("billing", "", "paths = [\"/after\"]"))?;
    world.reload()?;
    for protocol in ["h1", "h2"] {
        let cut = world.expect_record(&[("path", "/large".into()), ("protocol", protocol.into())])?;
        assert_eq!(
            shown(&cut, &["status", "outcome", "reason"]),
            "200 denied revoked"
        );
        assert!(cut.field("bytes_down").as_u64() < Some(LARGE), "{cut:?}");
    }
    for mut child in stopped {
        child.kill()?;
        child.wait()?;
    }
    Ok(())
}

/// A rule that is taken back, and one that loses its credential.
#[test]
fn a_websocket_is_cut() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let (world, _upstream) = start(ALLOW, "")?;
    let file = world.secret("first", "first")?;
    let credential = format!(
        "[credential.first]\nhosts = \"{RAW}:443\"\nscheme = \"bearer\"\nsource = {{ file = {file:?} }}\n"
    );
    let with = ALLOW.replacen("private = true", "private = true\ncredential = \"first\"", 1) + &credential;
    let without = ALLOW.to_owned() + &credential;
    for (path, before, after) in [("/ws/1", ALLOW, TAKEN_BACK), ("/ws/2", &with, &without)] {
        world.policy("http.toml", before)?;
        world.reload()?;
        let mut talk = Talk::start(&world, path)?;
        assert_eq!(
            (talk.told()?, talk.told()?),
            ("101".to_owned(), "ping".to_owned())
        );
        world.policy("http.toml", after)?;
        world.reload()?;
        assert_eq!(talk.told()?, "0", "the end comes, and nothing before it");
        assert!(wait_for(&mut talk.child, wait::PATIENCE)?.success());
        let cut = record(&world, path)?;
        let told = [
            "protocol",
            "status",
            "outcome",
            "reason",
            "bytes_up",
            "bytes_down",
        ];
        assert_eq!(shown(&cut, &told), "ws 101 denied revoked 4 4", "{path}");
    }
    Ok(())
}

/// A managed client that talks by a WebSocket, and tells what it hears.
struct Talk {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Talk {
    fn start(world: &World, path: &str) -> Result<Self> {
        let script = format!(
            "import socket, ssl\n\
             sock = ssl.create_default_context().wrap_socket(socket.create_connection(('{RAW}', 443), 20), server_hostname='{RAW}')\n\
             sock.sendall(b'GET {path} HTTP/1.1\\r\\nHost: {RAW}\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\n'\n\
             b'Sec-WebSocket-Version: 13\\r\\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\n\\r\\n')\n\
             print(sock.recv(65536).split()[1].decode(), flush=True)\n\
             sock.sendall(b'ping'); print(sock.recv(4).decode(), flush=True)\n\
             try: print(len(sock.recv(1)))\n\
             except OSError: print(0)\n"
        );
        let mut command = world.workload("billing")?.command(["python3", "-c", &script]);
        let child = command.stdout(Stdio::piped()).spawn();
        let mut child = child.context("can't start python3")?;
        let lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        Ok(Self { child, lines })
    }

    fn told(&mut self) -> Result<String> {
        self.lines.next().context("it ended early")?.context("no text")
    }
}

#[test]
fn a_call_that_waits_for_its_upstream_is_cut_before_anything_is_sent() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = World::new()?;
    let deaf = world.scripted_by(DEAF, RAW, Some(RAW))?;
    world.policy("http.toml", ALLOW)?;
    // One data thread, so that the second call by HTTP/2 waits for the first one's dial.
    world.settings("threads = 1\n[limits]\nconnect_seconds = 120");
    world.start_agent()?;
    // The harness has looked whether it listens.
    let looked = deaf.arrived()?.len();
    let dialled = |count: usize| {
        wait::until("a dial", wait::PATIENCE, || {
            let arrived = deaf.arrived().ok()?.len();
            (arrived >= looked + count).then_some(())
        })
    };
    let call = |path: &str, version: &str| curl(&world, &[version, &format!("https://{RAW}/{path}")]);
    let mut waiting = vec![("first", call("first", "--http2")?)];
    dialled(1)?;
    waiting.push(("leases", call("leases", "--http2")?));
    waiting.push(("second", call("second", "--http1.1")?));
    dialled(2)?;
    take_back(&world)?;
    for (path, child) in &mut waiting {
        assert_eq!(printed(child)?, "403", "{path}");
        let cut = record(&world, &format!("/{path}"))?;
        assert_eq!(shown(&cut, &["status", "outcome"]), "403 denied", "{path}");
        // Whether the one in the middle was decided before the reload can't be seen from here.
        assert!(*path == "leases" || cut.text("reason") == "revoked", "{cut:?}");
    }
    assert_eq!(deaf.arrived()?.len(), looked + 2);
    Ok(())
}
