//! The whole agent, supervisor included, is restarted, killed and upgraded under load: connections wait instead of
//! failing, calls under way end well, each has its one record, and nobody else gets at the ports.

mod broken;
mod by_root;
mod installed;
mod kinds;
mod late;
mod seized;

use std::fs;
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use callgate_common::abi;
use callgate_common::names::{ABI_SLOT, LIVENESS};
use harness::launch::{Place, wait_for};
use harness::limit::WORLD_LIMIT;
use harness::{Output, World, assert_record, require, wait};
use serde_json::{Value, json};

use crate::audit::{agent_status, call, download, worker};
use crate::identity::API;
use crate::load::{Load, Recorded, STREAM, Said, allowing, check_records, prepared, settled};

/// Connections that are each in the middle of an answer.
const STREAMS: usize = 200;
/// What a death and the next start may take on a busy machine.
const EACH_KILL: Duration = Duration::from_secs(5);
const MANY: &str = include_str!("restart/streams.py");
const LISTENER: &str = "callgate-billing-tcp4";
/// What curl exits with when it could not connect.
const COULD_NOT_CONNECT: Option<i32> = Some(7);

fn start() -> Result<World> {
    let mut world = prepared()?;
    world.keep_sockets()?;
    world.start_agent()?;
    Ok(world)
}

/// As `systemctl restart`: nothing is waited for but the old supervisor's end.
fn restart(world: &mut World) -> Result<()> {
    world.stop_agent()?;
    world.start_agent()
}

/// A client with [`STREAMS`] answers under way.
struct Streams {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Streams {
    /// Starts it as `command` does with these arguments; all answers have begun then.
    fn start(command: impl FnOnce(&[&str]) -> Command) -> Result<Self> {
        let count = STREAMS.to_string();
        let mut child = command(&["python3", "-c", MANY, API, "/streams/", &count])
            .stdout(Stdio::piped())
            .spawn()
            .context("can't start python3")?;
        let lines = BufReader::new(child.stdout.take().context("no output")?);
        let mut streams = Self { child, lines };
        let first = streams.line()?;
        ensure!(first["begun"] == STREAMS, "{first}");
        Ok(streams)
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }

    /// Waits for their end; every one has come whole.
    fn end_well(mut self) -> Result<()> {
        let whole = json!({"status": 200, "length": STREAM, "error": ""});
        for _ in 0..STREAMS {
            assert_eq!(self.line()?, whole);
        }
        ensure!(wait_for(&mut self.child, wait::PATIENCE)?.success());
        Ok(())
    }
}

fn all_answered(said: &[Said]) {
    let lost: Vec<_> = said.iter().filter(|one| one.status != 200).collect();
    assert!(lost.is_empty(), "{} of {} lost: {lost:?}", lost.len(), said.len());
}

#[test]
fn a_restart_under_load_loses_no_call_and_lets_two_hundred_streams_end() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = start()?;
    let (port, names) = (world.keeper()?.port(LISTENER)?, world.keeper()?.names());
    let load = Load::start_in(&world, 4, 4)?;
    let client = world.workload("billing")?;
    let streams = Streams::start(|args| client.command(args))?;
    let old = worker(&world)?;
    restart(&mut world)?;
    assert_ne!(worker(&world)?, old);
    assert_eq!(agent_status(&world)?.1["draining"], 1);
    load.goes_on()?;
    assert_eq!(world.keeper()?.port(LISTENER)?, port);
    assert_eq!(world.keeper()?.names(), names);
    all_answered(&load.end()?);
    streams.end_well()?;
    wait::until("the old worker's end", wait::PATIENCE, || {
        agent_status(&world)
            .ok()
            .filter(|(_, status)| status["draining"] == 0)
    })?;
    let (records, arrived) = settled(&world)?;
    check_records(&records, &arrived);
    assert_eq!(of_streams(&records), vec!["completed"; STREAMS]);
    Ok(())
}

/// How the streams ended, as recorded.
fn of_streams(records: &Recorded) -> Vec<String> {
    let of_them = records.iter().filter(|(path, _)| path.starts_with("/streams/"));
    of_them.map(|(_, of_it)| of_it[0].text("outcome")).collect()
}

#[test]
fn an_agent_that_is_killed_under_load_keeps_its_ports_and_opens_nothing() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    killed(3)
}

#[test]
#[ignore = "takes minutes: `cargo xtask test --all`"]
fn an_agent_that_is_killed_a_hundred_times_under_load_keeps_its_ports_and_opens_nothing() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    killed(100)
}

fn killed(times: usize) -> Result<()> {
    let mut world = start()?;
    world.may_last(WORLD_LIMIT.max(EACH_KILL * u32::try_from(times)?));
    let (port, names) = (world.keeper()?.port(LISTENER)?, world.keeper()?.names());
    let load = Load::start_in(&world, 4, 4)?;
    for _ in 0..times {
        world.kill_agent()?;
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        assert_eq!(taken.err().map(|error| error.kind()), Some(ErrorKind::AddrInUse));
        world.start_agent()?;
        load.goes_on()?;
        assert_eq!(world.keeper()?.port(LISTENER)?, port);
        assert_eq!(world.keeper()?.names(), names);
    }
    let said = load.end()?;
    let (records, arrived) = settled(&world)?;
    check_records(&records, &arrived);
    check_killed(&said, &records)
}

/// Calls of an agent that is killed may fail; what the client was told is what is recorded.
fn check_killed(said: &[Said], records: &Recorded) -> Result<()> {
    for one in said.iter().filter(|one| one.status != 0) {
        let of_it = records.get(&one.path);
        let outcome = of_it.with_context(|| format!("no record of {one:?}"))?[0].text("outcome");
        let right = match one.status {
            // Its answer may have been on its way.
            200 => ["completed", "aborted"].contains(&outcome.as_str()),
            503 => outcome == "aborted",
            _ => false,
        };
        assert!(right, "{one:?}: {of_it:?}");
    }
    Ok(())
}

#[test]
fn a_connection_that_is_made_while_no_agent_runs_is_served_by_the_next() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = start()?;
    // A command can't be enrolled without an agent.
    let script = r#"echo ready; read -r go; exec curl -sS -m 15 -f -o /dev/null "$0""#;
    let mut client = world
        .workload("billing")?
        .command(["sh", "-c", script, &format!("https://{API}/waited")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut ready = String::new();
    BufReader::new(client.stdout.take().context("no output")?).read_line(&mut ready)?;
    let old = worker(&world)?;
    world.stop_agent()?;
    // It has nothing to end, and sees to it that the kernel refuses nobody.
    assert!(Path::new(&format!("/proc/{old}")).exists());
    client.stdin.take().context("no input")?.write_all(b"go\n")?;
    wait::until("a connection that waits", wait::PATIENCE, || {
        // A listener's receive queue is what waits to be accepted.
        let read =
            |file: &str| fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
        let all = read("tcp") + &read("tcp6");
        let waits = |line: &str| line.contains(" 0A 00000000:") && !line.contains(" 0A 00000000:00000000 ");
        all.lines().any(waits).then_some(())
    })?;
    world.start_agent()?;
    assert!(wait_for(&mut client, wait::PATIENCE)?.success());
    assert_record!(world, "path" = "/waited", "outcome" = "completed");
    is_gone(old)
}

fn is_gone(worker: u32) -> Result<()> {
    wait::until("the worker's end", wait::PATIENCE, || {
        (!Path::new(&format!("/proc/{worker}")).exists()).then_some(())
    })
}

#[test]
fn a_policy_that_changed_while_the_agent_was_down_ends_the_calls_that_the_old_one_left() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = start()?;
    let mut client = download(&world)?;
    let old = worker(&world)?;
    world.stop_agent()?;
    assert!(client.try_wait()?.is_none(), "the call is over");
    world.policy("audit.toml", &allowing("paths = [\"/after\"]"))?;
    world.start_agent()?;
    let ended = wait_for(&mut client, wait::PATIENCE)?;
    assert!(!ended.success(), "{ended}");
    is_gone(old)?;
    assert_eq!(call(&world, "/after")?, 200);
    let record = assert_record!(world, "path" = "/slow");
    assert_eq!(record.text("outcome"), "aborted");
    Ok(())
}

#[test]
fn a_reload_with_another_policy_ends_what_an_old_worker_still_does() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = start()?;
    let mut client = download(&world)?;
    restart(&mut world)?;
    world.reload()?;
    assert!(client.try_wait()?.is_none(), "the same policy leaves it alone");
    world.policy("audit.toml", &allowing("paths = [\"/after\"]"))?;
    world.reload()?;
    let ended = wait_for(&mut client, wait::PATIENCE)?;
    assert!(!ended.success(), "{ended}");
    let record = assert_record!(world, "path" = "/slow");
    assert_eq!(record.text("outcome"), "aborted");
    Ok(())
}

#[test]
fn an_agent_that_is_stopped_for_good_gives_its_ports_back_and_refuses() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = start()?;
    let inside = inside(&world)?;
    let (port, old) = (world.keeper()?.port(LISTENER)?, worker(&world)?);
    world.stop_agent()?;
    world.keeper()?.release();
    is_refused(&world, "/released", |curl| Place::in_cgroup(&inside).run(curl))?;
    is_gone(old)?;
    drop(TcpListener::bind((Ipv4Addr::LOCALHOST, port))?);
    // Also with somebody else at what was the agent's port.
    let thief = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    is_refused(&world, "/taken", |curl| Place::in_cgroup(&inside).run(curl))?;
    thief.set_nonblocking(true)?;
    assert_eq!(
        thief.accept().err().map(|error| error.kind()),
        Some(ErrorKind::WouldBlock)
    );
    drop(thief);
    // What was refused would have been answered.
    let url = format!("https://{API}/unmanaged");
    world
        .unmanaged()?
        .run(["curl", "-sSk", "-o", "/dev/null", &url])?
        .ok()?;
    world.start_agent()?;
    assert_eq!(call(&world, "/after")?, 200);
    let arrived: Vec<_> = world
        .server(API)?
        .log()?
        .into_iter()
        .map(|line| line.uri)
        .collect();
    assert_eq!(arrived, ["/unmanaged", "/after"]);
    Ok(())
}

/// A cgroup of the workload for those that no agent can enrol.
fn inside(world: &World) -> Result<PathBuf> {
    let inside = world.cgroup().join("workloads/callgate-billing.slice/service");
    fs::create_dir(&inside)?;
    Ok(inside)
}

/// A dial of the allowed host at its real addresses is refused to whom `run` starts, whom nobody enrolled.
fn is_refused(world: &World, path: &str, run: impl Fn(&[&str]) -> Result<Output>) -> Result<()> {
    let server = world.server(API)?;
    let url = format!("https://{API}{path}");
    for address in [server.v4(), server.v6()] {
        let at = format!("{API}:443:{}", address.ip());
        let curl = [
            "curl",
            "-sSk",
            "-m",
            "5",
            "--resolve",
            &at,
            "-o",
            "/dev/null",
            &url,
        ];
        let reply = run(&curl)?;
        assert_eq!(reply.code(), COULD_NOT_CONNECT, "{address}: {reply:?}");
    }
    Ok(())
}

#[test]
fn sockets_that_are_not_what_they_are_called_are_closed() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = prepared()?;
    world.keep_sockets()?;
    let foreign = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = foreign.local_addr()?.port();
    let unknown = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    world.keeper()?.add(LISTENER, foreign.into());
    world.keeper()?.add("callgate-gone-tcp4", unknown.into());
    world.start_agent()?;
    assert_ne!(world.keeper()?.port(LISTENER)?, port);
    let mut kept = ["dns4", "dns6", "tcp4", "tcp6"]
        .map(|part| format!("callgate-billing-{part}"))
        .to_vec();
    kept.push("callgate-pins".into());
    assert_eq!(world.keeper()?.names(), kept);
    drop(TcpListener::bind((Ipv4Addr::LOCALHOST, port))?);
    assert_eq!(call(&world, "/after")?, 200);
    Ok(())
}

/// Writes the version that the pins in this directory are said to be of.
fn set_version(pins: &Path, version: u32) -> Result<()> {
    let pin = pins.join("maps").join(LIVENESS);
    let mut command = Command::new("bpftool");
    command.args(["map", "update", "pinned"]).arg(pin);
    command.args([
        "key",
        &ABI_SLOT.to_string(),
        "0",
        "0",
        "0",
        "value",
        &version.to_string(),
    ]);
    ensure!(command.args(["0"; 7]).status()?.success(), "bpftool");
    Ok(())
}

#[test]
fn a_binary_that_can_not_take_over_what_is_pinned_says_so_and_opens_nothing() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = start()?;
    let port = world.keeper()?.port(LISTENER)?;
    let inside = inside(&world)?;
    let call = || {
        let url = format!("https://{API}/meanwhile");
        Place::in_cgroup(&inside).run(["curl", "-sSk", "-m", "1", "-o", "/dev/null", &url])
    };
    world.stop_agent()?;
    let pins = world.dir().join("bpf");
    set_version(&pins, 99)?;
    let refused = format!(
        "{:#}",
        world.start_agent().expect_err("it can't know this version")
    );
    assert!(refused.contains("pins of version 99"), "{refused}");
    let mut runs = Place::in_cgroup(&inside).command(["sleep", "60"]).spawn()?;
    let doctor = world.callgate("doctor", &["--json"])?.stdout;
    runs.kill()?;
    runs.wait()?;
    assert!(
        doctor.contains("not looked at: ") && doctor.contains("pins of version 99"),
        "{doctor}"
    );
    assert_ne!(call()?.code(), Some(0));
    assert!(
        world
            .server(API)?
            .log()?
            .iter()
            .all(|line| line.uri != "/meanwhile")
    );
    set_version(&pins, abi::VERSION)?;
    world.start_agent()?;
    assert_eq!(world.keeper()?.port(LISTENER)?, port);
    assert_eq!(crate::audit::call(&world, "/after")?, 200);
    Ok(())
}

#[test]
fn a_credential_helper_gets_none_of_the_sockets_that_the_last_run_left() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = prepared()?;
    let open = world.dir().join("open");
    let script = format!("ls -l /proc/self/fd >> {}; echo s3cret", open.display());
    let helper = format!(
        "[credential.helper]\nhosts = [\"{API}:443\"]\nscheme = \"bearer\"\nsource = {{ exec = [\"/bin/sh\", \"-c\", {script:?}] }}\n"
    );
    world.policy("helper.toml", &helper)?;
    world.keep_sockets()?;
    world.start_agent()?;
    fs::remove_file(&open)?;
    restart(&mut world)?;
    let open = fs::read_to_string(&open)?;
    assert!(open.contains("/dev/null") && !open.contains("socket:"), "{open}");
    Ok(())
}
