//! Root takes kernel programs, pins or their file system away: that is noticed within a second, put back and recorded,
//! and where it can't be put back, nothing more runs in a workload.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use harness::audit::matching;
use harness::{Record, World, assert_record, require, wait};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::audit::{agent_status, call, call_until, start};

/// What may pass between a breach and the record of it.
const NOTICED: Duration = Duration::from_secs(1);

/// Says the time (nanoseconds since 1970) and detaches the links that are given as pins: BPF_OBJ_GET, BPF_LINK_DETACH (include/uapi/linux/bpf.h).
pub(crate) const DETACH: &str = r#"
import ctypes, os, sys, time
print(time.time_ns())
bpf = lambda command, attributes: ctypes.CDLL(None, use_errno=True).syscall(321, command, attributes, len(attributes))
for pin in sys.argv[1:]:
    path = ctypes.create_string_buffer(os.fsencode(pin))
    get = ctypes.addressof(path).to_bytes(8, "little") + bytes(8)
    link = bpf(7, get)
    assert link >= 0, pin
    assert bpf(34, link.to_bytes(4, "little")) == 0, pin
"#;

/// The pins of the workload's links.
fn pins(world: &World) -> Result<Vec<PathBuf>> {
    let slice = world.cgroup().join("workloads/callgate-billing.slice");
    let links = world
        .dir()
        .join(format!("bpf/links/cgroup-{}", fs::metadata(slice)?.ino()));
    let pins: Vec<PathBuf> = fs::read_dir(&links)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .with_context(|| links.display().to_string())?;
    assert_eq!(pins.len(), 13, "{pins:?}");
    Ok(pins)
}

/// Waits for a record of the breach that says this; a breach in several steps may be noticed in several.
fn recorded(world: &World, what: &str) -> Result<()> {
    let expected = [("error.kind", "perimeter".into()), ("outcome", "failed".into())];
    wait::until("a record of the breach", wait::PATIENCE, || {
        let all = world.records().ok()?;
        let found = matching(&all, &expected);
        let says = |record: &&Record| record.text("error.message").contains(what);
        found.into_iter().any(|record| says(&record)).then_some(())
    })
}

fn put_back(world: &World, times: u64) -> Result<()> {
    wait::until("the perimeter put back", wait::PATIENCE, || {
        let (code, status) = agent_status(world).ok()?;
        let back = status["perimeter_repairs"].as_u64()? >= times && status["perimeter_intact"] == true;
        (back && code == Some(0)).then_some(())
    })
}

/// A managed call goes by the agent, at once or, where a busy machine keeps the worker from its pulse, soon.
fn is_captured(world: &World) -> Result<()> {
    let path = call_until(world, "/after", 200)?;
    assert_record!(world, "path" = path.as_str(), "workload" = "billing");
    Ok(())
}

#[test]
fn pins_that_are_removed_open_nothing_and_are_put_back() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = start()?;
    let links = pins(&world)?;
    let since = OffsetDateTime::now_utc().unix_timestamp_nanos();
    links.iter().try_for_each(fs::remove_file)?;
    for entry in fs::read_dir(world.dir().join("bpf/maps"))? {
        fs::remove_file(entry?.path())?;
    }
    // Whether it was put back by now or not.
    assert_eq!(call(&world, "/between")?, 200);
    put_back(&world, 1)?;
    assert_eq!(pins(&world)?.len(), links.len());
    assert_record!(world, "path" = "/between", "workload" = "billing");
    // What is removed while it is being put back is put back too, and may be named by no record.
    recorded(&world, "detached or unpinned, and put back: ")?;
    is_noticed(&world.records()?, since)?;
    // The next run takes over what was put back.
    world.kill_agent()?;
    world.start_agent()?;
    is_captured(&world)
}

#[test]
fn links_that_are_detached_are_made_again() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let mut detach = vec!["python3".into(), "-c".into(), DETACH.into()];
    detach.extend(pins(&world)?.into_iter().map(PathBuf::into_os_string));
    let since: i128 = world.unmanaged()?.run(detach)?.ok()?.trim().parse()?;
    put_back(&world, 1)?;
    is_captured(&world)?;
    recorded(&world, "cg_connect4")?;
    is_noticed(&world.records()?, since)
}

/// The first record of a breach was made soon enough after this time, in nanoseconds since 1970.
pub(crate) fn is_noticed(all: &[Record], since: i128) -> Result<()> {
    let breaches = matching(all, &[("error.kind", "perimeter".into())]);
    let first = breaches.first().context("no record of a breach")?;
    let at = OffsetDateTime::parse(&first.text("time"), &Rfc3339)?.unix_timestamp_nanos();
    let noticed = Duration::from_nanos(u64::try_from(at - since)?);
    assert!(noticed <= wait::scaled(NOTICED), "it took {noticed:?}");
    Ok(())
}

#[test]
fn a_bpf_file_system_that_is_unmounted_is_mounted_again() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = start()?;
    let bpf = world.dir().join("bpf");
    let bpf = bpf.to_str().context("a path")?;
    let since = OffsetDateTime::now_utc().unix_timestamp_nanos();
    world.unmanaged()?.run(["umount", "-l", bpf])?.ok()?;
    put_back(&world, 1)?;
    pins(&world)?;
    recorded(&world, "detached or unpinned, and put back: ")?;
    is_noticed(&world.records()?, since)?;
    world.kill_agent()?;
    world.start_agent()?;
    is_captured(&world)
}

#[test]
fn what_can_not_be_put_back_keeps_everybody_out_until_it_can() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let bpf = world.dir().join("bpf");
    // The agent may be quick enough to mount it again, or to make the directory again, in between.
    let obstacle = format!(
        "until umount -l {0}; rmdir {0} && true >{0}; do :; done",
        bpf.display()
    );
    world.unmanaged()?.run(["sh", "-c", &obstacle])?.ok()?;
    wait::until("a perimeter that is not intact", wait::PATIENCE, || {
        let (code, status) = agent_status(&world).ok()?;
        (code == Some(1) && status["perimeter_intact"] == false).then_some(())
    })?;
    let refused = world.workload("billing")?.run(["true"])?;
    assert_ne!(refused.code(), Some(0), "{refused:?}");
    assert!(refused.stderr.contains("not all in place"), "{refused:?}");
    let marker = world.dir().join("run/armed/billing");
    assert!(!marker.exists(), "units may still start");
    let doctor = world.callgate("doctor", &[])?;
    assert_eq!(doctor.code(), Some(3), "{doctor:?}");
    assert!(doctor.stdout.contains("can't be put back"), "{doctor:?}");
    recorded(&world, "can't be put back")?;
    fs::remove_file(&bpf)?;
    put_back(&world, 1)?;
    assert!(marker.exists(), "units may not start");
    assert_eq!(call(&world, "/after")?, 200);
    Ok(())
}
