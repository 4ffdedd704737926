//! Signals that arrive while the agent starts: it obeys them once it is ready, none ends it half-way.

use std::fs;
use std::process::Child;

use anyhow::{Result, ensure};
use harness::{Upstream, World, launch, require, wait};

use crate::audit::{agent_status, call};
use crate::identity::{API, workload};

/// A world whose agent takes a second to start, for the value of a credential, and a process that sends the signals then.
fn told(signals: &[&str]) -> Result<(World, Child)> {
    let mut world = World::new()?;
    world.upstream(Upstream::new(API))?;
    let starting = world.dir().join("starting");
    let helper = format!(
        "echo $PPID > {0}.new && mv {0}.new {0}; sleep 1; echo s3cret",
        starting.display()
    );
    let policy = workload("billing", "", "credential = \"slow\"")
        + &format!("[credential.slow]\nhosts = [\"{API}:443\"]\nscheme = \"bearer\"\n")
        + &format!("source = {{ exec = [\"/bin/sh\", \"-c\", {helper:?}] }}\n");
    world.policy("signals.toml", &policy)?;
    let tell = "i=0; until [ -e $0 ] || [ $i -gt 400 ]; do sleep 0.05; i=$((i + 1)); done; pid=$(cat $0); \
        for signal in \"$@\"; do kill -s $signal $pid; done";
    let mut teller = world.agent_place()?.command(["sh", "-c", tell]);
    let teller = teller.arg(starting).args(signals).spawn()?;
    Ok((world, teller))
}

fn sent(mut teller: Child) -> Result<()> {
    let status = launch::wait_for(&mut teller, wait::PATIENCE)?;
    ensure!(status.success(), "the signals were not sent: {status}");
    Ok(())
}

#[test]
fn a_reload_and_a_replacement_that_are_asked_for_during_the_start_come_after_it() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let (mut world, teller) = told(&["HUP", "USR2"])?;
    world.start_agent()?;
    sent(teller)?;
    wait::until("the reload", wait::PATIENCE, || {
        let (_, status) = agent_status(&world).ok()?;
        (status["generation"] == 2).then_some(())
    })?;
    ensure!(call(&world, "/after")? == 200);
    Ok(())
}

#[test]
fn a_stop_during_the_start_is_a_stop_like_any_other() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let (world, teller) = told(&["TERM"])?;
    world.write_config()?;
    let output = world.callgate("run", &[])?;
    sent(teller)?;
    ensure!(output.code() == Some(0), "{output:?}");
    ensure!(
        fs::read_dir(world.dir().join("bpf"))?.next().is_some(),
        "what is managed stays held"
    );
    Ok(())
}
