//! What an operator can get wrong at start and at reload: said with place and remedy, with the right exit code, with
//! nothing left behind, and without losing what was in force.
//!
//! There is no test of a listener port that is taken: the ports are the kernel's choice (port 0), so that can't be.

/// The commands beside the agent: without one running, and the log over rotations.
mod commands;
/// A reload that is refused, and one whose credential is broken.
mod reload;
/// What is told the agent before it is ready.
mod signals;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use harness::launch::{Output, tool};
use harness::{World, agent, require};

use crate::audit::call;
use crate::identity::workload;

const LACKING: Option<i32> = Some(3);
const WRONG: Option<i32> = Some(2);
const NOBODY: u32 = 65534;

/// Settings with one fault a line, and where and how each is told.
const BAD_SETTINGS: &str = "threds = 2\nthreads = \"two\"\nlog_level = \"inf\"\nresolvers = [\"dns.example\"]\n[limits]\nh2_streams = 0\n";

pub(crate) const BAD_POLICY: &str = "[[workload]]\nname = \"w\"\nunts = [\"a.service\"]\n  [[workload.allow]]\n  \
    host = 3\n  [[workload.allow]]\n  host = \"a.example\"\n  paths = [\"/v1/*\"]\n  credential = \"tokn\"\n\
    [credential.token]\nhosts = [\"a.example\"]\nscheme = \"bearr\"\nsource = { file = \"secrets/x\" }\n";

/// A place, and the words that must follow it.
pub(crate) const POLICY_FAULTS: &[(&str, &str)] = &[
    ("bad.toml:3:1", "did you mean `units`?"),
    ("bad.toml:5:10", "must be a string, not an integer"),
    ("bad.toml:8:13", "write {name} for one segment"),
    ("bad.toml:9:17", "did you mean `token`?"),
    ("bad.toml:12:11", "did you mean \"bearer\"?"),
    ("bad.toml:13:20", "is no absolute path"),
];

/// A policy whose two rules tie and name different credentials.
pub(crate) const OVERLAP: &str = "[[workload]]\nname = \"o\"\n  [[workload.allow]]\n  host = \"a.example\"\n  \
    paths = [\"/{a}\"]\n  credential = \"one\"\n  [[workload.allow]]\n  host = \"a.example\"\n  paths = [\"/{b}\"]\n  \
    credential = \"two\"\n[credential.one]\nhosts = [\"a.example\"]\nscheme = \"bearer\"\nsource = { file = \"/1\" }\n\
    [credential.two]\nhosts = [\"a.example\"]\nscheme = \"bearer\"\nsource = { file = \"/2\" }\n";

fn world() -> Result<World> {
    let world = World::new()?;
    world.policy("billing.toml", &workload("billing", "", ""))?;
    world.write_config()?;
    Ok(world)
}

fn said(output: &Output) -> String {
    format!("{}{}", output.stdout, output.stderr)
}

fn assert_says(output: &Output, code: Option<i32>, words: &[&str]) {
    assert_eq!(output.code(), code, "{output:?}");
    let said = said(output);
    for word in words {
        assert!(said.contains(word), "{word:?} is missing in:\n{said}");
    }
}

/// A start that must fail like this, and leave nothing.
fn assert_refused(world: &World, code: Option<i32>, words: &[&str]) -> Result<()> {
    assert_says(&world.callgate("run", &[])?, code, words);
    assert_nothing_left(world)
}

/// No cgroups, no pins, no socket, no process.
fn assert_nothing_left(world: &World) -> Result<()> {
    let below = |dir: &Path| -> Result<Vec<_>> {
        let entries = fs::read_dir(dir).with_context(|| format!("can't list {}", dir.display()))?;
        Ok(entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.is_dir())
            .collect())
    };
    assert_eq!(below(&world.cgroup().join("workloads"))?, Vec::<PathBuf>::new());
    assert_eq!(below(&world.dir().join("bpf"))?, Vec::<PathBuf>::new());
    let running = fs::read_to_string(world.cgroup().join("agent/cgroup.procs"))?;
    assert_eq!(running, "");
    assert!(!world.dir().join("run/admin.sock").exists());
    assert!(!world.dir().join("run/armed/billing").exists());
    Ok(())
}

/// A policy file of 10 MB.
pub(crate) fn large() -> Vec<u8> {
    vec![b'#'; 10 * 1024 * 1024]
}

#[test]
fn every_fault_of_settings_and_policy_is_named_at_once() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = world()?;
    world.policy("bad.toml", BAD_POLICY)?;
    for verb in ["run", "check"] {
        let output = world.callgate(verb, &[])?;
        let faults: Vec<&str> = POLICY_FAULTS.iter().flat_map(|(at, what)| [*at, *what]).collect();
        assert_says(&output, WRONG, &faults);
    }
    world.settings(BAD_SETTINGS);
    world.write_config()?;
    let checked = world.callgate("check", &[])?;
    let at = |line: usize| format!("callgate.toml:{line}:");
    let text = fs::read_to_string(world.config())?;
    for line in BAD_SETTINGS.lines().filter(|line| !line.starts_with('[')) {
        let number = text.lines().position(|one| one == line).context("no such line")? + 1;
        assert_says(&checked, WRONG, &[&at(number)]);
    }
    // The policy's place is good in the settings, so its faults are told along.
    let hints = [
        "did you mean `threads`?",
        "this is a string",
        "between 1 and 10000",
    ];
    assert_says(&checked, WRONG, &hints);
    assert_says(&checked, WRONG, &["bad.toml:3:1", "11 errors"]);
    let document: serde_json::Value =
        serde_json::from_str(&world.callgate("check", &["--json"])?.stdout).context("no JSON")?;
    assert_eq!(document["findings"].as_array().map(Vec::len), Some(11));
    assert_refused(&world, WRONG, &["the settings have errors"])
}

#[test]
fn settings_and_policies_that_are_no_text_or_too_large_are_refused() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = world()?;
    let policy = world.dir().join("policy.d/bad.toml");
    for (content, words) in [
        (b"name = \"\xff\"".to_vec(), ["bad.toml:1:9", "not UTF-8"]),
        (large(), ["bad.toml", "larger than 4 MiB"]),
        (OVERLAP.into(), ["bad.toml:10:17", "different credentials"]),
    ] {
        fs::write(&policy, content)?;
        assert_says(&world.callgate("check", &[])?, WRONG, &words);
        assert_refused(&world, WRONG, &words)?;
    }
    fs::remove_file(&policy)?;
    let good = fs::read(world.config())?;
    for (content, words) in [
        (b"name = \"\xff\"".to_vec(), ["callgate.toml:1:9", "not UTF-8"]),
        (large(), ["callgate.toml", "larger than 1 MiB"]),
    ] {
        fs::write(world.config(), content)?;
        assert_refused(&world, WRONG, &words)?;
    }
    fs::write(world.config(), good)?;
    fs::rename(world.dir().join("policy.d"), world.dir().join("elsewhere"))?;
    assert_refused(&world, WRONG, &["policy.d", "the policy directory can't be read"])
}

#[test]
fn an_empty_policy_directory_is_good_and_manages_nothing() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = World::new()?;
    world.start_agent()?;
    assert_says(&world.callgate("check", &[])?, Some(0), &["nothing is managed"]);
    let refused = world.workload("billing")?.run(["true"])?;
    assert_says(&refused, Some(1), &["no workload \"billing\""]);
    world.policy("billing.toml", &workload("billing", "", ""))?;
    world.reload()?;
    world.workload("billing")?.run(["true"])?.ok()?;
    world.stop_agent()
}

#[test]
fn without_rights_it_says_which_and_makes_nothing() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = world()?;
    let place = world.agent_place()?.as_user(NOBODY);
    let refused = agent::command(&place, &world.config(), "run", &[])?;
    assert_says(
        &refused,
        LACKING,
        &["CAP_BPF (to load programs)", "CAP_SYS_ADMIN", "run it as root"],
    );
    assert_nothing_left(&world)?;
    let looked = agent::command(&place, &world.config(), "doctor", &[])?;
    assert_says(
        &looked,
        LACKING,
        &["FAIL privileges", "CAP_BPF", "-> run as root"],
    );
    assert!(!said(&looked).contains("use Linux 6.1"), "{looked:?}");
    Ok(())
}

#[test]
fn without_cgroup_v2_it_says_how_to_mount_it() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = world()?;
    let mount = harness::cgroup::mount_point()?;
    let script = r#"umount -l "$0" && exec "$@""#;
    for verb in ["run", "doctor"] {
        let binary = agent::binary()?;
        let (mount, binary, config) = (mount.as_os_str(), binary.as_os_str(), world.config());
        let args = ["unshare", "-m", "sh", "-c", script].map(AsRef::as_ref);
        let tail = [
            mount,
            binary,
            verb.as_ref(),
            "--config".as_ref(),
            config.as_os_str(),
        ];
        let refused = world.agent_place()?.run(args.into_iter().chain(tail))?;
        assert_says(&refused, LACKING, &["cgroup v2", "mount -t cgroup2"]);
    }
    assert_nothing_left(&world)
}

#[test]
fn an_agent_on_the_state_of_a_running_one_is_refused() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = crate::audit::start()?;
    let text = fs::read_to_string(world.config())?;
    let other = world.dir().join("other");
    fs::create_dir(&other)?;
    let elsewhere = |key: &str| {
        let of_world = format!("{key} = {:?}", world.dir().join("run"));
        text.replace(&of_world, &format!("{key} = {other:?}"))
    };
    let config = other.join("callgate.toml");
    fs::write(&config, elsewhere("runtime_dir"))?;
    let second = agent::command(&world.agent_place()?, &config, "run", &[])?;
    assert_says(
        &second,
        LACKING,
        &["another agent holds", "state/lock", "stop it first"],
    );
    for dir in ["run", "state"] {
        let mode = fs::metadata(world.dir().join(dir).join("lock"))?
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o600, "others could hold the lock of {dir}");
    }
    assert_eq!(call(&world, "/after")?, 200);
    Ok(())
}

#[test]
fn a_certificate_authority_that_is_broken_or_open_to_others_is_refused() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = world()?;
    let file = world.dir().join("state/ca.pem");
    fs::write(&file, "no certificate")?;
    fs::set_permissions(&file, Permissions::from_mode(0o600))?;
    assert_refused(&world, LACKING, &["state/ca.pem"])?;
    assert_eq!(
        fs::read_to_string(&file)?,
        "no certificate",
        "it is the operator's to remove"
    );
    fs::remove_file(&file)?;
    world.start_agent()?;
    world.stop_agent()?;
    let good = fs::read(&file)?;
    fs::set_permissions(&file, Permissions::from_mode(0o644))?;
    let refused = world.callgate("run", &[])?;
    assert_says(&refused, LACKING, &["state/ca.pem", "mode is 0644, not 0600"]);
    fs::set_permissions(&file, Permissions::from_mode(0o600))?;
    world.start_agent()?;
    assert_eq!(fs::read(&file)?, good);
    world.stop_agent()
}

#[test]
fn directories_that_can_t_be_made_or_written_are_named() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = world()?;
    let (read_only, file) = (world.dir().join("read-only"), world.dir().join("file"));
    fs::create_dir(&read_only)?;
    fs::write(&file, "")?;
    let options = ["-t", "tmpfs", "-o", "ro", "none"].map(AsRef::as_ref);
    tool(
        Path::new("mount"),
        options.into_iter().chain([read_only.as_os_str()]),
    )?;
    let good = fs::read_to_string(world.config())?;
    for (key, place) in [
        ("state_dir", "state"),
        ("runtime_dir", "run"),
        ("bpffs_dir", "bpf"),
        ("file", "audit/calls.jsonl"),
    ] {
        let line = |path: &Path| format!("{key} = {path:?}");
        for bad in [read_only.join("x"), file.join("x")] {
            let text = good.replace(&line(&world.dir().join(place)), &line(&bad));
            assert_ne!(text, good);
            fs::write(world.config(), text)?;
            let parent = bad.parent().and_then(Path::to_str).context("no parent")?;
            assert_refused(&world, LACKING, &["ERROR", "can't", parent])?;
        }
    }
    fs::write(world.config(), good.replace("\"nobody\"", "\"no-such-user\""))?;
    assert_refused(&world, LACKING, &["no user \"no-such-user\"", "`worker_user`"])
}

#[test]
fn the_admin_socket_takes_the_place_of_a_stale_one_only() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = world()?;
    let path = world.dir().join("run/admin.sock");
    let live = UnixListener::bind(&path)?;
    let refused = world.callgate("run", &[])?;
    assert_says(
        &refused,
        LACKING,
        &["another process serves the admin socket", "run/admin.sock"],
    );
    assert!(path.exists(), "the other's socket is not ours to remove");
    drop(live);
    world.start_agent()?;
    assert_says(
        &world.callgate("status", &[])?,
        Some(0),
        &["policy      generation 1"],
    );
    world.stop_agent()?;
    assert!(!path.exists());
    fs::write(&path, "precious")?;
    let refused = world.callgate("run", &[])?;
    assert_says(
        &refused,
        LACKING,
        &["run/admin.sock is there and is no socket", "admin_socket"],
    );
    assert_eq!(fs::read_to_string(&path)?, "precious");
    Ok(())
}
