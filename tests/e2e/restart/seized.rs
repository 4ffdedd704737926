//! Another process of the host, as root, wants the ports of an installed agent that is killed over and over under load.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Stdio};

use anyhow::{Context as _, Result, ensure};
use harness::launch::wait_for;
use harness::limit::WORLD_LIMIT;
use harness::{Bed, require, wait};
use serde_json::{Value, json};

use super::installed::{call, main_pid, managed, settled, start, status};
use super::{EACH_KILL, check_killed};
use crate::load::{Load, check_records};

const PROBER: &str = include_str!("prober.py");
/// The agent's ports: two for TCP and two for DNS over UDP.
const PORTS: &str = "ss -Hltnu src 127.0.0.1 or src '[::1]' | awk '{print $1, $5}' | sort";
const OWNED: usize = 4;
/// How many ways the prober has for all of them.
const WAYS: usize = 2 * (4 + 3) * 4;

/// Who wants the ports.
struct Prober {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Prober {
    /// Starts it; it has shown by then that it gets what is free, and is refused what is not.
    fn start(bed: &Bed, ports: &str) -> Result<Self> {
        let mut child = bed
            .command(["python3", "-c", PROBER].into_iter().chain(ports.lines()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("can't start python3")?;
        let lines = BufReader::new(child.stdout.take().context("no output")?);
        let mut prober = Self { child, lines };
        let shown = prober.line()?;
        assert_eq!(
            shown,
            json!({"free": {"taken": WAYS}, "held": {"EADDRINUSE": WAYS}})
        );
        Ok(prober)
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("the prober said {line:?}"))
    }

    /// Ends it: it never got one, at each of at least so many rounds.
    fn has_none(mut self, rounds: usize) -> Result<()> {
        drop(self.child.stdin.take());
        let said = self.line()?;
        ensure!(wait_for(&mut self.child, wait::PATIENCE)?.success());
        let tried = usize::try_from(said["rounds"].as_u64().context("no number")?)?;
        assert!(tried >= rounds, "{said}");
        assert_eq!(said["came"], json!({"EADDRINUSE": tried * WAYS}), "{said}");
        Ok(())
    }
}

/// Kills the agent so often, its whole group and the supervisor alone by turns.
fn killed(times: usize) -> Result<Bed> {
    let mut bed = start()?;
    bed.world_mut()
        .may_last(WORLD_LIMIT.max(EACH_KILL * u32::try_from(times)?));
    let ports = bed.sh(PORTS)?.ok()?;
    assert_eq!(ports.lines().count(), OWNED, "{ports}");
    let prober = Prober::start(&bed, &ports)?;
    let load = Load::start(bed.world(), |args| bed.command(managed(args)), 4, 4)?;
    for whom in ["all", "main"].into_iter().cycle().take(times) {
        let before = main_pid(&bed)?;
        let whom = format!("--kill-whom={whom}");
        bed.systemctl(&["kill", &whom, "--signal=KILL", "callgate"])?
            .ok()?;
        wait::until("another agent", wait::PATIENCE, || {
            let active = bed.property("callgate", "ActiveState").ok()? == "active";
            (active && main_pid(&bed).ok()? != before).then_some(())
        })
        .with_context(|| bed.journal("callgate").unwrap_or_default())?;
        load.goes_on()?;
        assert_eq!(bed.sh(PORTS)?.ok()?, ports);
    }
    // So often it was started again, and no limit of systemd's was in the way.
    assert_eq!(bed.property("callgate", "NRestarts")?, times.to_string());
    prober.has_none(times * 10)?;
    let said = load.end()?;
    let (records, arrived) = settled(&bed)?;
    check_records(&records, &arrived);
    check_killed(&said, &records)?;
    Ok(bed)
}

#[test]
fn an_agent_that_is_killed_comes_back_on_its_ports_within_seconds() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = killed(3)?;
    // The sockets may be of a cgroup that a former agent had; the programs on it are this one's to keep.
    bed.sh("rm -r /sys/fs/bpf/callgate/links")?.ok()?;
    wait::until("the pins put back", wait::PATIENCE, || {
        let status = status(&bed).ok()?;
        (status["perimeter_repairs"].as_u64() > Some(0) && status["perimeter_intact"] == true).then_some(())
    })?;
    bed.systemctl(&["restart", "callgate"])?.ok()?;
    call(&bed, "/repaired")
}

#[test]
#[ignore = "takes minutes: `cargo xtask test --all`"]
fn an_agent_that_is_killed_a_hundred_times_by_systemd_comes_back_on_its_ports_and_opens_nothing() -> Result<()>
{
    require!(Root, CgroupV2, Btf, Bed);
    killed(100).map(drop)
}
