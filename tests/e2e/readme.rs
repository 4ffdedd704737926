//! The README, followed literally: its first policy and its commands, at the default places, in a file system that is
//! the test's own where they write.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use harness::launch::{Output, finish, tool, wait_for};
use harness::{Upstream, World, agent, require, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const README: &str = include_str!("../../README.md");
const HOST: &str = "api.stripe.com";
const TOKEN: &str = "tok_readme_1";

/// The blocks that stand under a heading, without their indentation.
fn blocks(heading: &str) -> Result<Vec<String>> {
    const INDENT: &str = "       ";
    let (_, section) = README.split_once(heading).context("no such heading")?;
    let section = section.split("\n## ").next().unwrap_or(section);
    let mut blocks = vec![String::new()];
    for line in section.lines() {
        match (line.strip_prefix(INDENT), line.is_empty()) {
            (Some(line), _) => *blocks.last_mut().context("a block")? += &format!("{line}\n"),
            (None, true) => *blocks.last_mut().context("a block")? += "\n",
            (None, false) => blocks.push(String::new()),
        }
    }
    blocks.retain(|block| !block.trim().is_empty());
    Ok(blocks)
}

/// Runs one line of the README as root's shell would.
fn typed(world: &World, line: &str, input: Option<&str>) -> Result<Output> {
    let file = world.dir().join("typed");
    fs::write(&file, input.unwrap_or_default())?;
    let mut command = world.agent_place()?.command(["sh", "-c", line]);
    command.stdin(File::open(&file)?);
    finish(command).with_context(|| line.to_owned())
}

/// `/etc` and what the agent writes to are the test's own, with the sandbox's names and roots in them. Dropped before the
/// world, whose own mounts lie below.
struct Places(Vec<&'static str>);

impl Places {
    fn new(world: &World) -> Result<Self> {
        let mut places = Self(Vec::new());
        let etc = world.dir().join("etc");
        run("cp", &["-a".as_ref(), "/etc".as_ref(), etc.as_ref()])?;
        run("mount", &["--bind".as_ref(), etc.as_ref(), "/etc".as_ref()])?;
        places.0.push("/etc");
        for place in ["/run", "/var/lib", "/var/log", "/usr/local/bin"] {
            run(
                "mount",
                &["-t", "tmpfs", "-o", "mode=0755", "none", place].map(AsRef::as_ref),
            )?;
            places.0.push(place);
        }
        fs::copy(agent::binary()?, "/usr/local/bin/callgate").context("can't install the agent")?;
        // Of the host only the cgroup tree is shared: the workloads go below the test's own.
        fs::create_dir("/etc/callgate")?;
        let settings = format!("cgroup_parent = {:?}\n", world.workload_parent());
        fs::write("/etc/callgate/callgate.toml", settings).context("can't write the settings")?;
        Ok(places)
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        for place in self.0.iter().rev() {
            // What stays mounted goes with the namespace.
            drop(run("umount", &["--lazy".as_ref(), place.as_ref()]));
        }
    }
}

fn run(program: &str, args: &[&OsStr]) -> Result<()> {
    tool(Path::new(program), args.iter().copied()).map(drop)
}

#[test]
fn the_first_policy_works_as_it_is_written() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = World::new()?;
    let server = Upstream::new(HOST).bearer(TOKEN, "acme");
    world.upstream(server)?;
    let _places = Places::new(&world)?;
    let blocks = blocks("## A first policy in two minutes")?;
    let [build, secret, policy, commands] = blocks.as_slice() else {
        anyhow::bail!("the README has other blocks: {blocks:#?}");
    };
    let user = build.trim_end().lines().last().context("no user is made")?;
    assert!(user.starts_with("useradd "), "{user}");
    typed(&world, user, None)?.ok()?;
    for line in secret.lines().filter(|line| !line.is_empty()) {
        typed(&world, line, Some(TOKEN))?.ok()?;
    }
    ensure!(
        README.contains("`install -d /etc/callgate/policy.d`"),
        "the directory is not made"
    );
    typed(&world, "install -d /etc/callgate/policy.d", None)?.ok()?;
    // The sandbox's upstream has a documentation address, as no real one has.
    let private = policy.replace(
        "  credential = \"stripe\"",
        "  credential = \"stripe\"\n  private = true",
    );
    assert_ne!(private, *policy);
    fs::write("/etc/callgate/policy.d/billing.toml", private)?;
    let mut running = None;
    let mut said = Vec::new();
    for line in commands.lines().filter(|line| !line.is_empty()) {
        if let Some(daemon) = line.strip_suffix(" &") {
            let mut command = world
                .agent_place()?
                .command(["sh", "-c", &format!("exec {daemon}")]);
            running = Some(command.stderr(Stdio::null()).spawn().context("can't start it")?);
            // A person types more slowly than it starts.
            wait::until("the agent answers", wait::PATIENCE, || {
                typed(&world, "callgate status", None)
                    .ok()?
                    .status
                    .success()
                    .then_some(())
            })?;
        } else {
            said.push((line, typed(&world, line, None)?.ok()?));
        }
    }
    let told = |start: &str| -> Result<&str> {
        let found = said.iter().find(|(line, _)| line.starts_with(start));
        found
            .map(|(_, told)| told.as_str())
            .with_context(|| start.to_owned())
    };
    assert!(told("callgate check")?.starts_with("good: 1 workloads, 2 rules, 1 credentials"));
    assert!(told("callgate explain")?.starts_with("allow"));
    assert!(told("callgate status")?.contains("billing"));
    assert!(
        told("callgate audit tail")?.contains("/v1/charges -> 200"),
        "{said:#?}"
    );
    let arrived = world.server(HOST)?.log()?;
    assert!(
        arrived
            .iter()
            .any(|line| line.uri == "/v1/charges" && line.status == 200),
        "{arrived:?}"
    );
    let mut running = running.context("nothing was run")?;
    kill(Pid::from_raw(i32::try_from(running.id())?), Signal::SIGTERM)?;
    assert!(wait_for(&mut running, wait::PATIENCE)?.success());
    Ok(())
}

#[test]
fn every_command_of_the_table_is_there() -> Result<()> {
    require!(Agent);
    let (_, section) = README.split_once("## Commands").context("no table")?;
    let section = section.split("\n## ").next().unwrap_or(section);
    let commands = section
        .split('`')
        .filter_map(|piece| piece.strip_prefix("callgate "));
    let mut seen = 0;
    for command in commands {
        let verbs = command
            .split(' ')
            .take_while(|word| word.chars().all(|c| c.is_ascii_lowercase()));
        let help = std::process::Command::new(agent::binary()?)
            .args(verbs)
            .arg("--help")
            .output()?;
        assert!(help.status.success(), "{command}");
        seen += 1;
    }
    assert!(seen > 6, "{seen}");
    Ok(())
}
