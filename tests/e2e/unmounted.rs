//! The host unmounts the BPF file system that the pins are on, and then the agent ends, by whatever cause: nothing of a
//! workload gets out meanwhile, and the next agent goes on with the same kernel programs.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};

use anyhow::{Context as _, Result};
use harness::{Bed, Upstream, World, assert_record, bed, require, wait};

use crate::identity::{API, workload};

/// An address that no rule names, where somebody listens.
const OTHER: [&str; 2] = ["203.0.113.10", "7000"];
/// The workload's process. It has no mount namespace of its own, which would keep the file system.
const UNIT: [&str; 6] = [
    "systemd-run",
    "--quiet",
    "--slice=callgate-billing.slice",
    "--unit=caller",
    "/usr/bin/python3",
    "/opt/connect.py",
];

/// An installed agent, and a managed process that tries to get past it without a pause.
struct Tried {
    bed: Bed,
    _listener: Child,
}

impl Tried {
    fn start() -> Result<Self> {
        let mut world = World::new()?;
        world.upstream(Upstream::new(API))?;
        let bed = Bed::boot(world)?;
        // One that nobody outside of the container keeps.
        bed.sh("umount /sys/fs/bpf && mount -t bpf bpf /sys/fs/bpf")?
            .ok()?;
        bed.install(&bed::package()?)?;
        bed.policy(&workload("billing", "", ""))?;
        let listener = listener(bed.world())?;
        bed.write("/opt/connect.py", include_str!("unmounted/connect.py"))?;
        let tried = Self {
            bed,
            _listener: listener,
        };
        tried.call()?;
        Ok(tried)
    }

    fn call(&self) -> Result<()> {
        let before = self.said()?.matches("begun").count();
        self.bed.run(UNIT.iter().chain(&OTHER))?.ok()?;
        wait::until("a caller that has begun", wait::PATIENCE, || {
            (self.said().ok()?.matches("begun").count() > before).then_some(())
        })
    }

    fn said(&self) -> Result<String> {
        self.bed.journal("caller")
    }

    /// As an operator might, with whatever uses it.
    fn unmount(&self) -> Result<()> {
        self.bed.run(["umount", "--lazy", "/sys/fs/bpf"])?.ok()?;
        Ok(())
    }

    fn noticed(&self) -> Result<()> {
        wait::until("a perimeter that is not intact", wait::PATIENCE, || {
            (self.bed.run(["callgate", "status"]).ok()?.code() == Some(1)).then_some(())
        })
    }

    fn kill(&self) -> Result<()> {
        let before = self.bed.property("callgate", "MainPID")?;
        self.bed.systemctl(&["kill", "--signal=KILL", "callgate"])?.ok()?;
        wait::until("another agent", wait::PATIENCE, || {
            let active = self.bed.property("callgate", "ActiveState").ok()? == "active";
            (active && self.bed.property("callgate", "MainPID").ok()? != before).then_some(())
        })
    }

    fn is_served(&self, path: &str) -> Result<()> {
        wait::until("an agent that finds nothing wrong", wait::PATIENCE, || {
            (self.bed.run(["callgate", "status"]).ok()?.code() == Some(0)).then_some(())
        })
        .with_context(|| self.bed.journal("callgate").unwrap_or_default())?;
        let url = format!("https://{API}{path}");
        let call = [
            "callgate",
            "exec",
            "--workload",
            "billing",
            "--",
            "curl",
            "-sS",
            "-f",
            &url,
        ];
        self.bed.run(call)?.ok()?;
        assert_record!(self.bed, "path" = path, "workload" = "billing");
        Ok(())
    }

    fn recorded(&self, what: &str) -> Result<()> {
        wait::until("a record of the breach", wait::PATIENCE, || {
            let all = self.bed.records().ok()?;
            all.iter()
                .any(|record| record.text("error.message").contains(what))
                .then_some(())
        })
    }

    /// Ends the caller: nothing has got through.
    fn nothing_got_through(&self) -> Result<()> {
        let said = self.ended()?;
        assert!(said.starts_with("through 0 "), "{said}");
        Ok(())
    }

    /// Ends the caller: it was nobody's any more.
    fn gets_through(&self) -> Result<()> {
        let said = self.ended()?;
        assert!(!said.starts_with("through 0 "), "{said}");
        Ok(())
    }

    fn ended(&self) -> Result<String> {
        let ends = |said: &str| said.matches("through ").count();
        let before = ends(&self.said()?);
        self.bed.run(["touch", "/run/enough"])?.ok()?;
        wait::until("the caller's end", wait::PATIENCE, || {
            let said = self.said().ok()?;
            let last = said.rfind("through ")?;
            (ends(&said) > before).then(|| said[last..].to_owned())
        })
    }
}

fn listener(world: &World) -> Result<Child> {
    let script = include_str!("unmounted/listen.py");
    let args = ["python3", "-c", script].into_iter().chain(OTHER);
    let mut child = world.outside()?.command(args).stdout(Stdio::piped()).spawn()?;
    let mut said = String::new();
    BufReader::new(child.stdout.take().context("no output")?).read_line(&mut said)?;
    assert_eq!(said, "ready\n");
    Ok(child)
}

#[test]
fn an_agent_that_is_killed_after_its_pins_file_system_was_unmounted_leaves_nothing_open() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let tried = Tried::start()?;
    tried.unmount()?;
    tried.noticed()?;
    assert_record!(tried.bed, "error.kind" = "perimeter", "outcome" = "failed");
    tried.kill()?;
    tried.is_served("/after")?;
    tried.nothing_got_through()
}

#[test]
fn an_agent_that_is_killed_before_it_noticed_has_its_successor_say_so_and_let_go_of_all_when_told()
-> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let tried = Tried::start()?;
    tried
        .bed
        .sh("umount --lazy /sys/fs/bpf; systemctl kill --signal=KILL callgate")?
        .ok()?;
    tried.is_served("/after")?;
    tried.recorded("the BPF file system of the pins was unmounted")?;
    assert!(tried.bed.exists("/sys/fs/bpf/callgate/links")?);
    tried.nothing_got_through()?;
    // What was moved is let go like anything else.
    tried.bed.run(["rm", "/run/enough"])?.ok()?;
    tried.call()?;
    tried.bed.run(["dpkg", "--purge", "callgate"])?.ok()?;
    assert!(!tried.bed.exists("/sys/fs/bpf/callgate")?);
    tried.gets_through()
}

#[test]
fn a_file_system_that_is_bound_elsewhere_too_was_unmounted_all_the_same() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let tried = Tried::start()?;
    let script = "mkdir /mnt/bound; mount --bind /sys/fs/bpf /mnt/bound; umount --lazy /sys/fs/bpf; systemctl kill --signal=KILL callgate";
    tried.bed.sh(script)?.ok()?;
    tried.is_served("/after")?;
    tried.recorded("the BPF file system of the pins was unmounted")?;
    tried.nothing_got_through()
}

#[test]
fn pins_that_another_setting_leads_away_from_are_moved_without_an_alarm() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let tried = Tried::start()?;
    let script =
        "mkdir /sys/fs/bpf/other && echo 'bpffs_dir = \"/sys/fs/bpf/other\"' >/etc/callgate/callgate.toml";
    tried.bed.sh(script)?.ok()?;
    let more = "[Service]\nReadWritePaths=/sys/fs/bpf/other\n";
    tried.bed.unit("callgate.service.d/pins.conf", more)?;
    tried.bed.systemctl(&["restart", "callgate"])?.ok()?;
    tried.is_served("/after")?;
    assert!(tried.bed.exists("/sys/fs/bpf/other/links")? && !tried.bed.exists("/sys/fs/bpf/callgate/links")?);
    let records = tried.bed.records()?;
    assert!(
        records.iter().all(|one| one.text("error.kind") != "perimeter"),
        "{records:?}"
    );
    assert!(
        tried
            .bed
            .journal("callgate")?
            .contains("pinned elsewhere is moved")
    );
    tried.nothing_got_through()
}

#[test]
fn an_agent_that_is_stopped_for_good_first_pins_where_the_host_looks() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let tried = Tried::start()?;
    tried.unmount()?;
    tried.bed.systemctl(&["stop", "callgate"])?.ok()?;
    let group = tried
        .bed
        .cgroup()
        .join("system.slice/callgate.service/cgroup.procs");
    wait::until("the worker's end", wait::PATIENCE, || {
        let left = std::fs::read_to_string(&group).unwrap_or_default();
        left.is_empty().then_some(())
    })?;
    assert!(tried.bed.exists("/sys/fs/bpf/callgate/links")?);
    tried.bed.systemctl(&["start", "callgate"])?.ok()?;
    tried.is_served("/after")?;
    tried.nothing_got_through()
}

#[test]
fn a_file_system_that_is_mounted_again_is_pinned_on_by_the_running_agent() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let tried = Tried::start()?;
    tried.unmount()?;
    tried.noticed()?;
    tried.bed.run(["callgate", "prepare"])?.ok()?;
    tried.is_served("/after")?;
    tried.recorded("put back: ")?;
    // What keeps the pins keeps the new ones.
    tried.unmount()?;
    tried.kill()?;
    tried.is_served("/again")?;
    tried.nothing_got_through()
}

/// Unmounts while the agent does nothing, mounts anew, and has a directory where one pin belongs: all others can be moved.
const OBSTACLE: &str = r#"set -e
main=$(systemctl show --property=MainPID --value callgate)
kill -STOP "$main"
pin=$(ls /sys/fs/bpf/callgate/links/*/ag_egress)
rm "$pin"
umount --lazy /sys/fs/bpf
callgate prepare
mkdir -p "$pin/in_the_way"
kill -CONT "$main"
"#;
/// Takes that away, unmounts again and kills the agent before it can do anything.
const AGAIN: &str = r#"set -e
kill -STOP "$(systemctl show --property=MainPID --value callgate)"
rmdir /sys/fs/bpf/callgate/links/*/ag_egress/in_the_way /sys/fs/bpf/callgate/links/*/ag_egress
umount --lazy /sys/fs/bpf
systemctl kill --signal=KILL callgate
"#;

#[test]
fn pins_that_were_moved_are_kept_where_they_are_also_if_not_all_could_be_put_back() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let tried = Tried::start()?;
    tried.bed.sh(OBSTACLE)?.ok()?;
    tried.recorded("can't be put back")?;
    let moved = "test $(ls /sys/fs/bpf/callgate/links/*/cg_connect4 | wc -l) = 1";
    tried.bed.sh(moved)?.ok()?;
    tried.bed.sh(AGAIN)?.ok()?;
    tried.is_served("/after")?;
    tried.nothing_got_through()
}
