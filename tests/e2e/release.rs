//! Letting go of all workloads with the agent stopped, and what can stand in the way of it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Stdio};

use anyhow::{Context, Result};
use harness::{Output, Upstream, World, launch, require, wait};

use crate::identity::{API, workload};

/// For each line that it is told tries whether the API's own address can be reached.
const TRY: &str = r#"
import socket, sys
for line in sys.stdin:
    try:
        socket.create_connection(("203.0.113.10", 443), 5).close()
        print("connected", flush=True)
    except OSError:
        print("refused", flush=True)
"#;

/// A managed process that tries to connect when it is told.
struct Trying {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Trying {
    fn start(world: &World) -> Result<Self> {
        let mut command = world.workload("billing")?.command(["python3", "-c", TRY]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let answers = BufReader::new(child.stdout.take().context("no output")?);
        Ok(Self { child, answers })
    }

    fn answer(&mut self) -> Result<String> {
        self.child
            .stdin
            .as_mut()
            .context("no input")?
            .write_all(b"try\n")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    fn end(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        launch::wait_for(&mut self.child, wait::PATIENCE).map(drop)
    }
}

fn start() -> Result<World> {
    let mut world = World::new()?;
    world.upstream(Upstream::new(API))?;
    world.policy("release.toml", &workload("billing", "", ""))?;
    world.start_agent()?;
    Ok(world)
}

fn release(world: &World, options: &[&str]) -> Result<Output> {
    world.callgate("release", &[&["--all"], options].concat())
}

fn slice(world: &World) -> PathBuf {
    world.cgroup().join("workloads/callgate-billing.slice")
}

fn marker(world: &World) -> PathBuf {
    world.dir().join("run/armed/billing")
}

#[test]
fn a_refused_release_opens_nothing_and_a_cgroup_in_use_stays_until_its_last_process_ends() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = start()?;
    let mut trying = Trying::start(&world)?;
    assert_eq!(trying.answer()?, "connected", "to the agent");
    world.stop_agent()?;
    let refused = release(&world, &[])?;
    assert_eq!(refused.code(), Some(1), "{refused:?}");
    assert!(refused.stderr.contains("processes run in billing"), "{refused:?}");
    assert!(marker(&world).exists() && slice(&world).exists());
    assert_eq!(trying.answer()?, "refused", "with nobody to turn to");

    let told = release(&world, &["--running"])?;
    assert_eq!(told.code(), Some(0), "{told:?}");
    assert!(told.stdout.contains("billing: its processes run on"), "{told:?}");
    assert!(!marker(&world).exists());
    // The kernel takes no cgroup away that a process is in.
    assert!(slice(&world).exists());
    assert_eq!(trying.answer()?, "connected", "to the API itself");
    let again = release(&world, &[])?;
    assert_eq!(again.code(), Some(1), "{again:?}");

    trying.end()?;
    let done = release(&world, &[])?;
    assert_eq!(done.code(), Some(0), "{done:?}");
    assert!(!done.stdout.contains("run on"), "{done:?}");
    assert!(
        !world.cgroup().join("workloads").exists(),
        "an empty parent stays"
    );
    Ok(())
}

/// What can't be removed is named; nothing starts as managed meanwhile, and done again it comes to its end.
#[test]
fn a_release_that_stops_half_way_says_where_and_ends_when_it_is_done_again() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = start()?;
    world.stop_agent()?;
    let pins = world.dir().join("bpf");
    let place = pins.join("place").display().to_string();
    let maps = pins.join("maps/strange").display().to_string();
    let do_all = |script: &str| world.unmanaged()?.run(["sh", "-c", script])?.ok();
    do_all(&format!("rm {place} && mkdir {place} {maps}"))?;
    for stands in [&maps, &place] {
        let stopped = release(&world, &[])?;
        assert_eq!(stopped.code(), Some(3), "{stopped:?}");
        assert!(
            stopped.stderr.contains(&format!("remove {stands}")),
            "{stopped:?}"
        );
        assert!(!marker(&world).exists());
        assert!(slice(&world).exists(), "it went on without what it could not do");
        do_all(&format!("rmdir {stands}"))?;
    }
    let done = release(&world, &[])?;
    assert_eq!(done.code(), Some(0), "{done:?}");
    assert!(!slice(&world).exists());
    // The file system's own are there from the beginning.
    let left = format!("find {} -mindepth 1 -not -name '*.debug'", pins.display());
    assert_eq!(do_all(&left)?, "");
    Ok(())
}
