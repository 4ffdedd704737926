//! A container with a network namespace of its own, started by podman with the workload's cgroup as its parent.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use harness::audit::matching;
use harness::sandbox::Room;
use harness::{Output, World, assert_record, require, wait};

use super::{launch, start};
use crate::identity::API;

/// Calls until it is answered and prints how often it had to.
const PATIENT: &str = r#"n=0
until curl -sS -m 5 --cacert /trust/ca-bundle.pem "$@"; do
    n=$((n+1)); [ $n -lt 50 ] || exit 9; sleep 0.1
done
echo tries=$n"#;

/// Sends what is for this host's own address to the upstream, in a way that the kernel would let out: without the first and
/// the last line it drops what has a loopback address and leaves by another device. It has no such switch for IPv6, where
/// not even an unmanaged process gets through.
pub(crate) const TRANSLATE: &str = "echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet
iptables -t nat -A OUTPUT -p tcp -d 127.0.0.1 -j DNAT --to 203.0.113.10:443
iptables -t nat -A POSTROUTING ! -o lo -j MASQUERADE";
/// Calls again and again in vain.
pub(crate) const IN_VAIN: &str =
    r#"n=0; while [ $n -lt 5 ]; do curl -sS -k -m 1 "$@" && exit 3; n=$((n+1)); done; exit 9"#;

/// Cgroups of version 1, which podman makes beside ours on hosts that have both.
struct Beside(String);

impl Drop for Beside {
    fn drop(&mut self) {
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            remove(&hierarchy.path().join(self.0.trim_start_matches('/')));
        }
    }
}

/// What is in use stays; ours is removed with the world.
fn remove(dir: &Path) {
    for below in fs::read_dir(dir).into_iter().flatten().flatten() {
        if below.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&below.path());
        }
    }
    fs::remove_dir(dir).ok();
}

/// A root file system that has nothing but where to put the host's.
fn root(world: &World) -> Result<PathBuf> {
    let root = world.dir().join("root");
    for dir in ["usr", "etc", "tmp", "proc", "sys", "dev", "run", "trust"] {
        fs::create_dir_all(root.join(dir))?;
    }
    for link in ["bin", "lib", "lib64", "sbin"] {
        std::os::unix::fs::symlink(format!("usr/{link}"), root.join(link))?;
    }
    Ok(root)
}

fn podman(world: &World, room: &Room, script: &str, args: &[&str]) -> Result<Output> {
    let dir = |name: &str| world.dir().join(name).display().to_string();
    let parent = format!("{}/callgate-billing.slice/box", world.workload_parent());
    let (store, run) = (
        format!("--root={}", dir("podman")),
        format!("--runroot={}", dir("podman-run")),
    );
    let network = format!("--network=ns:{}", room.file.display());
    let (trust, host) = (
        format!("{}:/trust:ro", dir("run/trust")),
        format!("{API}:203.0.113.10"),
    );
    let (root, parent) = (dir("root"), format!("--cgroup-parent={parent}"));
    let fixed = [
        "podman",
        &store,
        &run,
        "--cgroup-manager=cgroupfs",
        "--runtime=runc",
        "run",
        "--rm",
        "--pids-limit=0",
        "--ulimit=nofile=1024:1024",
        "--ulimit=nproc=1024:1024",
        &network,
        &parent,
        "--add-host",
        &host,
        "-v",
        "/usr:/usr:ro",
        "-v",
        &trust,
        "--rootfs",
        &root,
        "/bin/sh",
        "-c",
        script,
        "sh",
    ];
    world.unmanaged()?.run(fixed.iter().chain(args))
}

#[test]
fn a_container_is_served_in_its_own_namespace_and_address_translation_there_leads_nowhere() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = start()?;
    let top = world.workload_parent().trim_end_matches("/workloads").to_owned();
    let _beside = Beside(top);
    root(&world)?;
    let room = world.room()?;
    let url = format!("https://{API}/who");
    let reply = podman(&world, &room, PATIENT, &[&url])?;
    assert!(reply.stdout.contains(&format!("from={}\n", room.v4)), "{reply:?}");
    // It is usually noticed while it starts, and at its first call at the latest.
    let soon = ["tries=0\n", "tries=1\n"];
    assert!(soon.iter().any(|one| reply.stdout.contains(one)), "{reply:?}");
    let record = assert_record!(world, "path" = "/who", "status" = 200);
    assert!(
        record
            .text("cgroup")
            .contains("callgate-billing.slice/box/libpod-"),
        "{record:?}"
    );

    let enter = format!("--net={}", room.file.display());
    let nsenter = Path::new("/usr/bin/nsenter");
    launch::tool(nsenter, [enter.as_str(), "sh", "-ec", TRANSLATE])?;
    // Without a workload it leads out: what is held below is held by nothing else.
    let to_loopback = format!("{API}:443:127.0.0.1");
    let unmanaged = world.unmanaged()?.in_netns(&room.file);
    let reply = unmanaged.run(["curl", "-sSk", "-m", "5", "--resolve", &to_loopback, &url])?;
    assert_eq!(reply.stdout, format!("from={}\n", room.v4), "{reply:?}");

    let before = world.server(API)?.log()?.len();
    let reply = podman(&world, &room, IN_VAIN, &[&url])?;
    assert_eq!(reply.code(), Some(9), "{reply:?}");
    assert_eq!(world.server(API)?.log().context("no log")?.len(), before);
    // Several: each connection tries more than once.
    wait::until("a record of what was dropped", wait::PATIENCE, || {
        let records = world.records().ok()?;
        let expected = [("reason", "egress".into()), ("workload", "billing".into())];
        (!matching(&records, &expected).is_empty()).then_some(())
    })
}
