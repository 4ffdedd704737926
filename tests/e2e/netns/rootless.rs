//! A container of podman's that a workload's user starts without root: in a user namespace and a network namespace of its
//! own, whose way out is a process (slirp4netns) that makes connections in the host's.

use std::os::unix::fs::{chown, symlink};

use anyhow::Result;
use harness::audit::Record;
use harness::launch::Place;
use harness::{World, require, wait};

use super::start;
use crate::identity::{API, NOBODY};

/// A port of the upstream's address that no rule names.
const OTHER: u16 = 7000;

/// Tries to call; then to have the process outside connect for it, by a packet that no socket of a connection made.
const CONTAINER: &str = r#"
n=0
while [ $n -lt 15 ]; do
    curl -sS -k -m 2 --resolve "$0:443:203.0.113.10" "https://$0/who" && exit 3
    n=$((n+1)); sleep 0.1
done
python3 -c "$1" "$2" && exit 9
"#;

/// A SYN in a frame to slirp4netns's own address, from the container's.
const FRAME: &str = r#"
import socket, struct, sys, time
def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xffff) + (total >> 16)
    return ~(total + (total >> 16)) & 0xffff
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
wire.bind(("tap0", 0))
here, there = socket.inet_aton("10.0.2.100"), socket.inet_aton("203.0.113.10")
def syn(port):
    head = struct.pack("!HHIIBBHHH", port, int(sys.argv[1]), 1, 0, 0x50, 2, 65535, 0, 0)
    pseudo = here + there + struct.pack("!BBH", 0, 6, len(head))
    head = head[:16] + struct.pack("!H", checksum(pseudo + head)) + head[18:]
    packet = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(head), 1, 0, 64, 6, 0) + here + there
    packet = packet[:10] + struct.pack("!H", checksum(packet)) + packet[12:]
    return bytes.fromhex("52550a000202") + wire.getsockname()[4] + b"\x08\x00" + packet + head
for number in range(5):
    wire.send(syn(40000 + number))
    time.sleep(0.2)
"#;

/// What a user needs to run a container: a root for it, and places to write. As on most hosts, everybody may make a tunnel.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Result<Self> {
        let home = tempfile::Builder::new().prefix("callgate-rootless-").tempdir()?;
        let dirs = ["usr", "etc", "tmp", "proc", "sys", "dev", "run"].map(|dir| format!("root/{dir}"));
        for dir in dirs.iter().map(String::as_str).chain(["run", "store", "state"]) {
            std::fs::create_dir_all(home.path().join(dir))?;
        }
        for link in ["bin", "lib", "lib64", "sbin"] {
            symlink(format!("usr/{link}"), home.path().join("root").join(link))?;
        }
        let all = dirs.iter().map(String::as_str);
        for dir in all.chain(["", "root", "run", "store", "state"]) {
            chown(home.path().join(dir), Some(NOBODY), Some(NOBODY))?;
        }
        Ok(Self(home))
    }

    fn dir(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// As a service of the user would: `callgate exec` and `callgate enable` let nobody make namespaces or mount.
    fn place(&self, world: &World) -> Result<Place> {
        let script = r#"mknod -m 666 "$0" c 10 200 && mount --bind "$0" /dev/net/tun"#;
        // For this world alone.
        let tunnel = ["sh", "-c", script, &self.dir("tun")].map(ToOwned::to_owned);
        world.unmanaged()?.run(tunnel)?.ok()?;
        let place = Place::in_cgroup(world.cgroup().join("workloads/callgate-billing.slice"));
        Ok(place
            .with_env("HOME", self.dir(""))
            .with_env("XDG_RUNTIME_DIR", self.dir("run"))
            .as_user(NOBODY))
    }
}

#[test]
fn a_container_that_a_user_starts_without_root_is_refused_on_record_and_so_is_its_way_out() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let home = Home::new()?;
    let (store, run, root) = (home.dir("store"), home.dir("state"), home.dir("root"));
    let port = OTHER.to_string();
    let podman = [
        "podman",
        &format!("--root={store}"),
        &format!("--runroot={run}"),
        "--cgroup-manager=cgroupfs",
        "--runtime=runc",
        "run",
        "--rm",
        "--pids-limit=0",
        "--ulimit=nofile=1024:1024",
        "--ulimit=nproc=1024:1024",
        "--cap-add=NET_RAW",
        "--network=slirp4netns",
        "-v",
        "/usr:/usr:ro",
        "--rootfs",
        &root,
        "/bin/sh",
        "-c",
        CONTAINER,
        API,
        FRAME,
        &port,
    ];
    let reply = home.place(&world)?.run(podman)?;
    assert_eq!(reply.code(), Some(9), "{reply:?}");
    let dialled = format!("203.0.113.10:{OTHER}");
    let is_inside = |one: &Record| one.text("reason") == "no_listener" && one.field("uid") == NOBODY;
    let is_way_out = |one: &Record| {
        one.text("comm") == "slirp4netns"
            && one.text("reason") == "port_not_named"
            && one.text("original_destination") == dialled
    };
    wait::until("records of both", wait::PATIENCE, || {
        let records = world.records().ok()?;
        (records.iter().any(is_inside) && records.iter().any(is_way_out)).then_some(())
    })?;
    let asked = world.server(API)?.log()?;
    assert!(asked.is_empty(), "a call came through: {asked:?}");
    Ok(())
}
