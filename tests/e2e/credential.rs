//! What becomes of a secret: it reaches the upstream that it is for and nothing else, whatever goes wrong; a bad
//! source gives none and says why; a new value is taken without a call being lost.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result};
use harness::launch::wait_for;
use harness::{Record, Upstream, World, assert_record, require, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::audit::{call, call_until, download, worker};
use crate::identity::{API, NOBODY};

/// Names no one else; nothing listens there.
const DEAD: &str = "dead.example.test";

/// One credential of the test: how it is put on, where from, and its value.
struct Secret {
    name: &'static str,
    scheme: &'static str,
    value: &'static str,
    /// As it goes over the wire.
    sent: &'static str,
}

const SECRETS: [Secret; 4] = [
    Secret {
        name: "bearer",
        scheme: "scheme = \"bearer\"",
        value: "tok+Bearer/0001==",
        sent: "tok+Bearer/0001==",
    },
    Secret {
        name: "basic",
        scheme: "scheme = \"basic\"\nusername = \"acme\"",
        value: "pass word 0002",
        // acme:pass word 0002
        sent: "YWNtZTpwYXNzIHdvcmQgMDAwMg==",
    },
    Secret {
        name: "header",
        scheme: "scheme = \"header\"\nname = \"x-api-key\"\nprefix = \"Key \"",
        value: "hdr-0003-value",
        sent: "hdr-0003-value",
    },
    Secret {
        name: "query",
        scheme: "scheme = \"query\"\nname = \"key\"",
        value: "qry&0004=value",
        sent: "qry%260004%3Dvalue",
    },
];

/// base64 of the values that don't contain their own wire form.
const CODED: [&str; 4] = [
    "dG9rK0JlYXJlci8wMDAxPT0",
    "cGFzcyB3b3JkIDAwMDI",
    "aGRyLTAwMDMtdmFsdWU",
    "cXJ5JjAwMDQ9dmFsdWU",
];

fn rule(host: &str, secret: &str) -> String {
    format!(
        "[[workload.allow]]\nname = \"{secret}-{host}\"\nhost = {host:?}\npaths = \"/{secret}/{{rest..}}\"\nprivate = true\ncredential = {secret:?}\n"
    )
}

fn credential(name: &str, scheme: &str, source: &str) -> String {
    format!(
        "[credential.{name}]\nhosts = [\"{API}:443\", \"{DEAD}:443\"]\n{scheme}\nsource = {{ {source} }}\n"
    )
}

fn leaky_world() -> Result<World> {
    let mut world = World::new()?;
    let big = world.dir().join("upstream/big");
    fs::write(&big, vec![b'x'; 4 << 20])?;
    let slow = format!("limit_rate 16k; alias {};", big.display());
    // The upstream notes what it got; nothing of that goes back.
    let log = r#"access_log DIR/seen.log seen; return 200 "thanks\n";"#;
    let log = log.replace(
        "DIR",
        world.dir().join("upstream").join(API).to_str().context("path")?,
    );
    world.upstream(
        Upstream::new(API)
            .location("= /bearer/slow", &slow)
            .location("/", &log)
            .log_format("seen", "$http_authorization|$http_x_api_key|$request_uri"),
    )?;
    // A certificate for another name: the handshake fails after the credential was chosen.
    world.upstream(Upstream::new(DEAD).certificate_of(API))?;
    let mut policy = String::from("[[workload]]\nname = \"billing\"\n");
    for secret in &SECRETS {
        policy += &rule(API, secret.name);
        policy += &rule(DEAD, secret.name);
    }
    for secret in &SECRETS {
        let file = world.secret(secret.name, secret.value)?;
        let source = match secret.name {
            "header" => format!("systemd = {:?}", secret.name),
            "query" => {
                let script = format!("cat {}; cat {} >&2", file.display(), file.display());
                format!("exec = [\"/bin/sh\", \"-c\", {script:?}]")
            }
            _ => format!("file = {file:?}"),
        };
        policy += &credential(secret.name, secret.scheme, &source);
    }
    let secrets = world.dir().join("secrets");
    world.agent_env("CREDENTIALS_DIRECTORY", secrets.to_str().context("path")?);
    world.agent_env("CALLGATE_LOG", "trace");
    world.policy("credential.toml", &policy)?;
    world.start_agent()?;
    Ok(world)
}

/// All that a managed client sees of a call, on its own side of the connection.
fn verbose(world: &World, version: &str, url: &str) -> Result<String> {
    let words = [
        "sh",
        "-c",
        "env; exec curl -sSv -i -m 10 \"$@\"",
        "sh",
        version,
        url,
    ];
    let reply = world.workload("billing")?.run(words)?;
    Ok(reply.stdout + &reply.stderr)
}

/// Every file below `dir` but those of the operator and the upstreams, and those that are no files of this file
/// system (a namespace's handle, pinned BPF objects).
fn written(dir: &Path, into: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    let device = fs::metadata(dir)?.dev();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let metadata = fs::symlink_metadata(&path)?;
        let kind = metadata.file_type();
        if metadata.dev() != device {
            continue;
        }
        if kind.is_dir() && !["upstream", "secrets"].iter().any(|own| path.ends_with(own)) {
            written(&path, into)?;
        } else if kind.is_file() {
            into.push((path.display().to_string(), fs::read(&path)?));
        }
    }
    Ok(())
}

#[test]
fn no_credential_is_written_or_shown_anywhere() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = leaky_world()?;
    let mut seen = Vec::new();
    let mut calls = |version: &str| -> Result<()> {
        for secret in &SECRETS {
            for (host, path) in [(API, secret.name), (API, "refused"), (DEAD, secret.name)] {
                let url = format!("https://{host}/{path}/{version}?mine=1");
                seen.push((url.clone(), verbose(&world, version, &url)?.into_bytes()));
            }
        }
        Ok(())
    };
    calls("--http1.1")?;
    calls("--http2")?;
    world.reload()?;
    let mut client = download_of(&world, "/bearer/slow")?;
    kill(Pid::from_raw(i32::try_from(worker(&world)?)?), Signal::SIGKILL)?;
    wait_for(&mut client, wait::PATIENCE)?;
    call_until(&world, "/bearer/after/", 200)?;
    calls("--http2")?;
    for args in [&["--json"][..], &[]] {
        let status = world.agent()?.command("status", args)?;
        seen.push(("status".to_owned(), (status.stdout + &status.stderr).into_bytes()));
    }
    let check = world.agent()?.command("check", &["--json"])?;
    assert_eq!(check.code(), Some(0), "{check:?}");
    seen.push(("check".to_owned(), (check.stdout + &check.stderr).into_bytes()));
    // The upstream got every one, so the test looks for what was really there.
    let got = wait::until("all credentials at the upstream", wait::PATIENCE, || {
        let got = fs::read_to_string(world.dir().join("upstream").join(API).join("seen.log")).ok()?;
        SECRETS
            .iter()
            .all(|secret| got.contains(secret.sent))
            .then_some(got)
    })?;
    assert!(!got.contains("refused"), "{got}");
    for secret in &SECRETS {
        assert_failed_upstream(&world, secret.name)?;
    }
    written(world.dir(), &mut seen)?;
    assert!(
        seen.iter()
            .any(|(name, text)| name.ends_with("agent.log") && text.len() > 10_000)
    );
    assert!(
        seen.iter()
            .any(|(name, text)| name.contains("state/") && !text.is_empty())
    );
    let seen = seen
        .iter()
        .map(|(name, text)| (name, String::from_utf8_lossy(text)));
    let seen: Vec<_> = seen.collect();
    let needles = SECRETS.iter().flat_map(|secret| [secret.value, secret.sent]);
    for needle in needles.chain(CODED) {
        for (name, text) in &seen {
            assert!(
                !text.contains(needle),
                "{needle} stands in {name}: {}",
                lines(text, needle)
            );
        }
    }
    Ok(())
}

/// The lines that hold the needle.
fn lines(text: &str, needle: &str) -> String {
    let found = text.lines().filter(|line| line.contains(needle));
    found.take(3).collect::<Vec<_>>().join("\n")
}

fn download_of(world: &World, path: &str) -> Result<std::process::Child> {
    let file = world.dir().join("download-of");
    let url = format!("https://{API}{path}");
    let mut command = world.workload("billing")?.command(["curl", "-sS", "-N", "-o"]);
    let child = command.arg(&file).arg(&url).stderr(Stdio::null()).spawn()?;
    wait::until("the first bytes of the answer", wait::PATIENCE, || {
        fs::metadata(&file).ok().filter(|meta| meta.len() > 0)
    })?;
    Ok(child)
}

fn assert_failed_upstream(world: &World, name: &str) -> Result<()> {
    let records = world.records()?;
    let of_dead: Vec<_> = records
        .iter()
        .filter(|record| {
            record.text("authority") == format!("{DEAD}:443") && record.text("credential.name") == name
        })
        .collect();
    assert_eq!(of_dead.len(), 3, "{name}");
    for record in of_dead {
        assert_eq!(record.text("error.source"), "upstream", "{record:?}");
        assert_eq!(record.text("error.kind"), "upstream_certificate", "{record:?}");
    }
    Ok(())
}

/// What a source has to say; `make` spoils the secret file.
type Fault = (&'static str, fn(&Path) -> Result<()>, &'static str);

const FAULTS: [Fault; 12] = [
    ("missing", |file| Ok(fs::remove_file(file)?), "No such file"),
    ("empty", |file| Ok(fs::write(file, "")?), "the value is empty"),
    ("newline", |file| Ok(fs::write(file, "\n")?), "the value is empty"),
    (
        "split",
        |file| Ok(fs::write(file, "s3cret\r\nx: y\n")?),
        "line break",
    ),
    ("nul", |file| Ok(fs::write(file, "s3cret\0")?), "NUL byte"),
    ("accent", |file| Ok(fs::write(file, "s3crét")?), "outside ASCII"),
    (
        "long",
        |file| Ok(fs::write(file, "s".repeat(9000))?),
        "longer than 8192",
    ),
    (
        "group",
        |file| Ok(fs::set_permissions(file, Permissions::from_mode(0o640))?),
        "has mode 0640",
    ),
    (
        "others",
        |file| Ok(fs::set_permissions(file, Permissions::from_mode(0o604))?),
        "has mode 0604",
    ),
    (
        "owner",
        |file| Ok(chown(file, Some(NOBODY), None)?),
        "belongs to uid 65534",
    ),
    (
        "link",
        |file| {
            let real = file.with_extension("real");
            fs::rename(file, &real)?;
            Ok(symlink(real, file)?)
        },
        "symbolic link",
    ),
    (
        "directory",
        |file| {
            fs::remove_file(file)?;
            Ok(fs::create_dir(file)?)
        },
        "regular file",
    ),
];

#[test]
fn each_fault_of_a_secret_file_is_named_by_check_and_refuses_the_calls_that_need_it() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = World::new()?;
    world.upstream(Upstream::new(API))?;
    let mut policy = String::from("[[workload]]\nname = \"billing\"\n");
    let mut sources = String::new();
    for (name, spoil, _) in FAULTS {
        let file = world.secret(name, "s3cret-value")?;
        spoil(&file)?;
        policy += &rule(API, name);
        sources += &credential(name, "scheme = \"bearer\"", &format!("file = {file:?}"));
    }
    let good = world.secret("good", "s3cret-value")?;
    policy += &rule(API, "good");
    sources += &credential("good", "scheme = \"bearer\"", &format!("file = {good:?}"));
    world.policy("credential.toml", &(policy + &sources))?;
    world.start_agent()?;
    let check = world.agent()?.command("check", &[])?;
    assert_eq!(check.code(), Some(2), "{check:?}");
    assert!(check.stdout.contains("12 errors"), "{check:?}");
    for (name, _, words) in FAULTS {
        let line = check
            .stdout
            .lines()
            .find(|line| line.contains(&format!("`{name}`")));
        assert!(line.is_some_and(|line| line.contains(words)), "{name}: {check:?}");
        let path = format!("/{name}/1");
        assert_eq!(call(&world, &path)?, 503, "{name}");
        let record = assert_record!(
            world,
            "path" = path,
            "outcome" = "failed",
            "status" = 503,
            "error.source" = "credential"
        );
        assert!(record.text("error.message").contains(words), "{name}: {record:?}");
        assert!(
            !record.text("error.message").contains("s3cr"),
            "{name}: {record:?}"
        );
    }
    assert_eq!(call(&world, "/good/1")?, 200);
    let unread = world.agent()?.command("check", &["--no-secrets"])?;
    assert_eq!(unread.code(), Some(0), "{unread:?}");
    let arrived = world.server(API)?.log()?;
    assert!(arrived.iter().all(|line| line.uri == "/good/1"), "{arrived:?}");
    Ok(())
}

#[test]
fn a_rotated_file_is_taken_up_without_a_failed_call() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = World::new()?;
    world.upstream(Upstream::new(API))?;
    let file = world.secret("rotated", "value-one")?;
    let policy = format!("[[workload]]\nname = \"billing\"\n{}", rule(API, "rotated"));
    let source = credential("rotated", "scheme = \"bearer\"", &format!("file = {file:?}"));
    world.policy("credential.toml", &(policy + &source))?;
    world.start_agent()?;
    assert_eq!(call(&world, "/rotated/first")?, 200);
    fs::rename(world.secret("rotated.new", "value-two")?, &file)?;
    let mut turn = 0;
    let versions = wait::until("the new value in use", wait::PATIENCE, || {
        turn += 1;
        match call(&world, &format!("/rotated/{turn}")) {
            Ok(200) => {}
            other => return Some(other.map(|status| (status, Vec::new()))),
        }
        let log = world.server(API).and_then(harness::upstream::Server::log).ok()?;
        let values: Vec<_> = log.into_iter().map(|line| line.authorization).collect();
        values
            .iter()
            .any(|value| value == "Bearer value-two")
            .then_some(Ok((200, values)))
    })??;
    assert_eq!(versions.0, 200, "a call failed while the file was rotated");
    let mut values = versions.1;
    values.dedup();
    assert_eq!(values, ["Bearer value-one", "Bearer value-two"]);
    let records = wait::until("all records", wait::PATIENCE, || {
        let records = world.records().ok()?;
        let calls: Vec<Record> = records
            .into_iter()
            .filter(|record| record.text("kind") == "call")
            .collect();
        (calls.len() > turn).then_some(calls)
    })?;
    let mut seen: Vec<_> = records
        .iter()
        .map(|record| record.text("credential.version").chars().next())
        .collect();
    seen.dedup();
    assert_eq!(seen, [Some('1'), Some('2')], "{records:?}");
    Ok(())
}

#[test]
fn a_helper_that_fails_hangs_or_floods_gives_nothing_and_holds_up_nobody() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = World::new()?;
    world.upstream(Upstream::new(API))?;
    let helpers = [
        (
            "fails",
            "echo s3cret-out; echo s3cret-err >&2; exit 3",
            "exit status 3",
        ),
        ("floods", "exec yes s3cret-out", "longer than 8192"),
        ("hangs", "echo s3cret-out; sleep 60", "killed"),
        ("signals", "echo s3cret-out; kill -9 $$", "signal 9"),
        ("empty", "true", "the value is empty"),
    ];
    let mut policy = format!("[[workload]]\nname = \"billing\"\n{}", rule(API, "good"));
    let mut sources = credential(
        "good",
        "scheme = \"bearer\"",
        "exec = [\"/bin/echo\", \"s3cret-good\"]",
    );
    for (name, script, _) in helpers {
        policy += &rule(API, name);
        let source = format!("exec = [\"/bin/sh\", \"-c\", {script:?}], timeout_seconds = 1");
        sources += &credential(name, "scheme = \"bearer\"", &source);
    }
    // Runs for as long as the test: a start that waited for it would not get ready.
    policy += &rule(API, "endless");
    let endless = "exec = [\"/bin/sleep\", \"600\"], timeout_seconds = 300";
    sources += &credential("endless", "scheme = \"bearer\"", endless);
    world.agent_env("CALLGATE_LOG", "trace");
    world.policy("credential.toml", &(policy + &sources))?;
    world.start_agent()?;
    assert_eq!(call(&world, "/good/1")?, 200);
    assert_eq!(call(&world, "/endless/1")?, 503);
    assert_record!(world, "path" = "/endless/1", "error.source" = "credential");
    for (name, _, words) in helpers {
        let path = format!("/{name}/1");
        assert_eq!(call(&world, &path)?, 503, "{name}");
        let record = assert_record!(world, "path" = path, "error.source" = "credential");
        assert!(record.text("error.message").contains(words), "{name}: {record:?}");
    }
    let mut seen = Vec::new();
    written(world.dir(), &mut seen)?;
    for (name, text) in seen {
        let secret = ["s3cret-out\n", "s3cret-err\n", "s3cret-good\n"]
            .into_iter()
            .find(|secret| String::from_utf8_lossy(&text).contains(secret.trim()));
        let policy = name.ends_with("credential.toml");
        assert!(policy || secret.is_none(), "{secret:?} stands in {name}");
    }
    Ok(())
}

#[test]
fn neither_process_can_be_dumped_or_read_by_its_own_user() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = crate::audit::start()?;
    let mut client = download(&world)?;
    for pid in [worker(&world)?, world.agent()?.pid()] {
        // proc(5): what an undumpable process has there belongs to root.
        let owner = fs::metadata(format!("/proc/{pid}/maps"))?;
        assert_eq!(owner.uid(), 0, "{pid}");
        let read = format!("/proc/{pid}/mem");
        let same_user = world.unmanaged()?.user(NOBODY).run(["cat", &read])?;
        assert_ne!(same_user.code(), Some(0), "{same_user:?}");
        assert!(same_user.stderr.contains("Permission denied"), "{same_user:?}");
        let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
        let core = limits.lines().find(|line| line.starts_with("Max core file size"));
        let words: Vec<_> = core.unwrap_or_default().split_whitespace().skip(4).collect();
        assert_eq!(words, ["0", "0", "bytes"], "{pid}");
    }
    client.kill()?;
    client.wait()?;
    Ok(())
}
