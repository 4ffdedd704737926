//! As installed: with no more rights than its unit gives, the agent can still prove that a connection went past it, and
//! tell which workload's.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use harness::{Bed, Record, Upstream, World, assert_record, require, wait};
use serde_json::Value;

use crate::identity::{API, workload};

/// Detaches the programs at connect() whose pins are below a directory, over and over for so many seconds: BPF_OBJ_GET,
/// BPF_LINK_DETACH (include/uapi/linux/bpf.h).
const DETACH: &str = r#"
import ctypes, os, pathlib, sys, time
libc = ctypes.CDLL(None, use_errno=True)
bpf = lambda command, attributes: libc.syscall(321, command, attributes, len(attributes))
until, detached = time.monotonic() + float(sys.argv[2]), 0
while time.monotonic() < until:
    for pin in pathlib.Path(sys.argv[1]).rglob("*connect4*"):
        path = ctypes.create_string_buffer(os.fsencode(pin))
        link = bpf(7, ctypes.addressof(path).to_bytes(8, "little") + bytes(8))
        if link >= 0:
            detached += bpf(34, link.to_bytes(4, "little")) == 0
            os.close(link)
    time.sleep(0.005)
print(detached)
"#;
/// The pins of all workloads' links.
const LINKS: &str = "/sys/fs/bpf/callgate/links";
const PAST: &str =
    "NOT CAPTURED: a connection from inside the workload went where it was dialled, past the agent";

const BROKEN: &str = "ci";
const GOOD: &str = "billing";

/// An installed agent with these workloads, whose canaries fly every second.
fn start(workloads: &[&str]) -> Result<Bed> {
    let mut world = World::new()?;
    world.upstream(Upstream::new(API))?;
    let bed = Bed::installed(world)?;
    bed.sh("echo 'canary_seconds = 1' >/etc/callgate/callgate.toml")?
        .ok()?;
    let policy: String = workloads.iter().map(|name| workload(name, "", "")).collect();
    bed.policy(&policy)?;
    bed.systemctl(&["restart", "callgate"])?.ok()?;
    Ok(bed)
}

/// The canaries that `status` finds to fail, and its exit code.
fn found(bed: &Bed) -> Result<(Option<i32>, Vec<Value>)> {
    let said = bed.run(["callgate", "status", "--json"])?;
    let status: Value = serde_json::from_str(&said.stdout)?;
    let failed = status["canaries"].as_array().context("no list")?;
    Ok((said.code(), failed.clone()))
}

/// Waits until the canaries of these workloads fail, and no others.
fn fail(bed: &Bed, workloads: &[&str]) -> Result<()> {
    let expected = i32::from(!workloads.is_empty());
    wait::until("the canaries' word", wait::PATIENCE, || {
        let (code, failed) = found(bed).ok()?;
        let names = failed.iter().filter_map(|one| one["workload"].as_str());
        (code == Some(expected) && names.eq(workloads.iter().copied())).then_some(())
    })
}

/// The workloads of which the journal has this message.
fn logged(bed: &Bed, message: &str) -> Result<BTreeSet<String>> {
    let journal = bed.journal("callgate")?;
    let said = journal.lines().filter(|line| line.contains(message));
    let names = said.flat_map(|line| line.split(' ').filter_map(|word| word.strip_prefix("workload=")));
    Ok(names.map(str::to_owned).collect())
}

/// A call of this workload comes through.
fn goes_on(bed: &Bed, name: &str, path: &str) -> Result<()> {
    let url = format!("https://{API}{path}");
    let exec = ["callgate", "exec", "--workload", name, "--"];
    let curl = ["curl", "-sS", "-f", "-m", "20", "-o", "/dev/null", &url];
    bed.run(exec.iter().chain(&curl))?.ok()?;
    assert_record!(bed, "path" = path, "workload" = name, "status" = 200);
    Ok(())
}

#[test]
fn a_canary_that_gets_past_the_agent_is_told_as_that_under_the_installed_unit() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = start(&[GOOD])?;
    let detached = bed.run(["python3", "-c", DETACH, LINKS, "4"])?.ok()?;
    assert_ne!(detached.trim(), "0", "nothing was detached");
    assert_record!(
        bed,
        "error.kind" = "canary",
        "workload" = GOOD,
        "error.message" = PAST
    );
    fail(&bed, &[])
}

#[test]
fn of_two_workloads_that_one_which_is_not_captured_is_named_everywhere_and_the_other_goes_on() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = start(&[GOOD, BROKEN])?;
    for name in [GOOD, BROKEN] {
        goes_on(&bed, name, &format!("/before/{name}"))?;
    }
    let group = format!("/sys/fs/cgroup/callgate.slice/callgate-{BROKEN}.slice");
    let group = bed.run(["stat", "-c%i", &group])?.ok()?;
    let links = format!("{LINKS}/cgroup-{}", group.trim());
    let breaker = [
        "systemd-run",
        "--quiet",
        "--unit=breaker",
        "python3",
        "-c",
        DETACH,
    ];
    bed.run(breaker.iter().chain(&[links.as_str(), "150"]))?.ok()?;

    // All of that while it goes on; in the moments between a repair and the next detaching a canary may arrive.
    let line = wait::until("a doctor that finds it", wait::PATIENCE, || {
        let doctor = bed.run(["callgate", "doctor"]).ok()?;
        let mut lines = doctor.stdout.lines();
        let line = lines.find(|line| line.starts_with("FAIL canaries"))?;
        (doctor.code() == Some(3)).then(|| line.to_owned())
    })?;
    assert!(
        line.contains("ci: NOT CAPTURED") && !line.contains(GOOD),
        "{line}"
    );
    for turn in 0..3 {
        fail(&bed, &[BROKEN])?;
        goes_on(&bed, GOOD, &format!("/during/{turn}"))?;
    }
    let broken = BTreeSet::from([BROKEN.to_owned()]);
    assert_eq!(bed.property("breaker", "ActiveState")?, "active");
    assert_eq!(logged(&bed, "the workload's canary failed")?, broken);

    bed.systemctl(&["stop", "breaker"])?.ok()?;
    fail(&bed, &[])?;
    assert_eq!(logged(&bed, "the workload's canary arrives again")?, broken);
    for name in [GOOD, BROKEN] {
        goes_on(&bed, name, &format!("/after/{name}"))?;
    }
    // In all that time the other was never taken for it.
    let records = bed.records()?;
    let failed = records.iter().filter(|one| one.text("error.kind") == "canary");
    let of_past = |one: &Record| (one.text("workload"), one.text("error.message"));
    let failed: BTreeSet<_> = failed.map(of_past).collect();
    assert_eq!(failed, BTreeSet::from([(BROKEN.to_owned(), PAST.to_owned())]));
    Ok(())
}
