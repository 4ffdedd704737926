//! What the doctor finds of processes that run: whom they trust, and sockets and programs that are others'.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use harness::launch::wait_for;
use harness::{World, require, wait};
use serde_json::Value;

use super::check;
use super::clock::{kept, where_it_is_kept};
use crate::identity::{NOBODY, start, workload};

/// Says a word once it is ready, and ends with its input.
const STAY: &str = "echo ready; read end";

/// Makes sockets and enters the cgroup with them.
const ENTER: &str = r#"
import os, socket, sys
made = [socket.socket(family, kind) for family in (socket.AF_INET, socket.AF_INET6)
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)]
made.append(socket.create_server(("127.0.0.1", 0)))
open(sys.argv[1] + "/cgroup.procs", "w").write("0")
print("ready", flush=True)
sys.stdin.read()
"#;

/// Takes a connection on a port, from a process that stays outside, and enters the cgroup with it.
const ENTER_ACCEPTED: &str = r#"
import os, socket, sys
port = int(sys.argv[2])
listener = socket.create_server(("127.0.0.1", port))
if os.fork() == 0:
    listener.close()
    socket.create_connection(("127.0.0.1", port)).recv(1)
    os._exit(0)
accepted, _ = listener.accept()
listener.close()
open(sys.argv[1] + "/cgroup.procs", "w").write("0")
print("ready", flush=True)
sys.stdin.read()
"#;

/// Enters the cgroup and makes sockets there that no hook of a cgroup sees: AF_PACKET and AF_XDP (include/linux/socket.h).
const ENTER_PAST: &str = r#"
import socket, sys
open(sys.argv[1] + "/cgroup.procs", "w").write("0")
made = [socket.socket(family, socket.SOCK_RAW, 0) for family in (17, 44)]
print("ready", flush=True)
sys.stdin.read()
"#;

/// Has a program at connect() of a cgroup that lets all pass: BPF_PROG_LOAD, BPF_LINK_CREATE (include/uapi/linux/bpf.h).
const ATTACH: &str = r#"
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def bpf(command, attributes):
    made = libc.syscall(321, command, attributes, len(attributes))
    assert made >= 0, os.strerror(ctypes.get_errno())
    return made
code = ctypes.create_string_buffer(struct.pack("<BBhiBBhi", 0xB7, 0, 0, 1, 0x95, 0, 0, 0), 16)
license = ctypes.create_string_buffer(b"GPL")
at = ctypes.addressof
SOCK_ADDR, INET4_CONNECT = 18, 10
program = bpf(5, struct.pack("<IIQQIIQII16sII", SOCK_ADDR, 2, at(code), at(license), 0, 0, 0, 0, 0,
                             b"others_connect", 0, INET4_CONNECT))
place = os.open(sys.argv[1], os.O_RDONLY)
link = bpf(28, struct.pack("<IIII", program, place, INET4_CONNECT, 0))
print("ready", flush=True)
sys.stdin.read()
"#;

/// Mounts a file system that never answers (include/uapi/linux/fuse.h; whoever looks into it waits for a signal).
const HANG: &str = r#"
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
device = os.open("/dev/fuse", os.O_RDWR)
options = b"fd=%d,rootmode=40000,user_id=0,group_id=0" % device
if libc.mount(b"hung", sys.argv[1].encode(), b"fuse", 0, options):
    sys.exit("mount: " + os.strerror(ctypes.get_errno()))
print("ready", flush=True)
sys.stdin.read()
libc.umount2(sys.argv[1].encode(), 2)
"#;

/// A process that is ready, and ends when it is told.
struct Staying(Child);

impl Staying {
    fn start(mut command: Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
        ensure!(line == "ready\n", "{line:?}");
        Ok(Self(child))
    }

    fn end(mut self) -> Result<()> {
        drop(self.0.stdin.take());
        wait_for(&mut self.0, wait::PATIENCE).map(drop)
    }
}

/// A process that root has moved in, without what `callgate exec` shows and sets: no more than these words start.
fn moved_in(world: &World, workload: &str, words: &[&str]) -> Result<Staying> {
    let slice = world
        .cgroup()
        .join("workloads")
        .join(format!("callgate-{workload}.slice"));
    let mut command =
        world
            .unmanaged()?
            .command(["sh", "-c", "echo 0 >$0/cgroup.procs && exec env -i \"$@\""]);
    command.arg(slice).args(words).args(["/bin/sh", "-c", STAY]);
    Staying::start(command)
}

fn looked(world: &World, name: &str) -> Result<Value> {
    check(&world.callgate("doctor", &["--json"])?, name)
}

fn text(check: &Value) -> &str {
    check["found"].as_str().unwrap_or_default()
}

/// A resolver that answers what it is asked, with the question.
fn resolver() -> Result<SocketAddr> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let address = socket.local_addr()?;
    thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((length, who)) = socket.recv_from(&mut question) {
            drop(socket.send_to(&question[..length], who));
        }
    });
    Ok(address)
}

#[test]
fn a_good_host_passes_in_every_line_that_is_not_the_machines_own_and_the_code_says_so() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent, Strace);
    let mut world = World::new()?;
    world.policy("good.toml", &workload("billing", "", ""))?;
    world.settings(&format!("resolvers = [\"{}\"]", resolver()?));
    world.start_agent()?;
    let running = Staying::start(world.workload("billing")?.command(["sh", "-c", STAY]))?;
    let said = world.callgate("doctor", &["--json"])?;
    let document: Value = serde_json::from_str(&said.stdout)?;
    let checks = document["checks"].as_array().context("no checks")?;
    assert!(checks.len() > 20, "{said:?}");
    // What the sandbox can't choose.
    let of_machine = [
        ("clock", kept(&world)? != "kept"),
        ("swap", fs::read_to_string("/proc/swaps")?.lines().count() > 1),
    ];
    let warned: Vec<_> = of_machine.into_iter().filter(|(_, warned)| *warned).collect();
    let bad: Vec<_> = checks.iter().filter(|check| check["status"] != "pass").collect();
    let names: Vec<_> = bad
        .iter()
        .map(|check| (check["name"].as_str(), check["status"].as_str()))
        .collect();
    let expected: Vec<_> = warned
        .iter()
        .map(|(name, _)| (Some(*name), Some("warn")))
        .collect();
    assert_eq!(names, expected, "{bad:?}");
    let good = expected.is_empty();
    assert_eq!(
        (said.code(), &document["ok"]),
        (Some(i32::from(!good)), &good.into()),
        "{bad:?}"
    );
    let summary = match good {
        true => "\ncallgate can run here.\n",
        false => "\ncallgate can run here, with the warnings above.\n",
    };
    let said = world.callgate("doctor", &[])?;
    assert!(said.stdout.ends_with(summary), "{said:?}");
    let said = where_it_is_kept(&mut world)?;
    assert_eq!(said.code(), Some(0), "{said:?}");
    let clock = said.stdout.lines().find(|line| line.starts_with("pass clock"));
    assert!(
        clock.is_some_and(|line| line.ends_with(" set and synchronised")),
        "{said:?}"
    );
    assert!(said.stdout.ends_with("\ncallgate can run here.\n"), "{said:?}");
    running.end()
}

#[test]
fn what_each_workloads_processes_trust_is_said_and_who_does_not_is_named() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start(&workload("billing", "exec_by = { users = [\"nobody\"] }", ""))?;
    let client = world.workload("billing")?.user(NOBODY);
    let trusting = Staying::start(client.command(["sh", "-c", STAY]))?;
    let good = looked(&world, "trust")?;
    assert_eq!(
        (&good["status"], text(&good)),
        (
            &"pass".into(),
            "billing: its processes trust the agent's root (1 find it among the host's, 0 by a variable)"
        )
    );
    let bundle = format!(
        "SSL_CERT_FILE={}",
        world.dir().join("run/trust/ca-bundle.pem").display()
    );
    let told = moved_in(&world, "billing", &[&bundle])?;
    assert_eq!(
        text(&looked(&world, "trust")?),
        "billing: its processes trust the agent's root (1 find it among the host's, 1 by a variable)"
    );
    told.end()?;
    let bare = moved_in(&world, "billing", &[])?;
    let named = looked(&world, "trust")?;
    assert_eq!(named["status"], "warn", "{named}");
    let pid = format!("{} (sh)", bare.0.id());
    assert!(
        text(&named).starts_with("billing: 1 of 2 processes do not have") && text(&named).ends_with(&pid),
        "{named} {pid}"
    );
    assert!(
        named["fix"]
            .as_str()
            .is_some_and(|fix| fix.contains("restart them"))
    );
    bare.end()?;
    assert_eq!(looked(&world, "trust")?["status"], "pass");
    trusting.end()?;
    let nobody = check(&world.callgate("doctor", &["--json"])?, "trust");
    assert!(nobody.is_err(), "{nobody:?}");
    Ok(())
}

#[test]
fn a_process_whose_file_system_hangs_hides_its_own_workload_and_no_other() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let policy = ["billing", "zeta"].map(|name| workload(name, "exec_by = { users = [\"nobody\"] }", ""));
    let world = start(&policy.concat())?;
    let directory = world.dir().join("hung");
    fs::create_dir(&directory)?;
    let mut hang = world.unmanaged()?.command(["python3", "-c", HANG]);
    hang.arg(&directory);
    let hang = Staying::start(hang)?;
    let bundle = format!("SSL_CERT_FILE={}", directory.join("bundle").display());
    let hung = moved_in(&world, "billing", &[&bundle])?;
    let good = Staying::start(world.workload("zeta")?.user(NOBODY).command(["sh", "-c", STAY]))?;
    let said = world.callgate("doctor", &["--json"])?;
    let document: Value = serde_json::from_str(&said.stdout)?;
    let checks = document["checks"].as_array().context("no checks")?;
    let of: Vec<_> = checks.iter().filter(|check| check["name"] == "trust").collect();
    let [billing, zeta] = of[..] else {
        bail!("{said:?}");
    };
    assert_eq!(text(billing), "billing: not looked at: that took more than 10s");
    assert_eq!(billing["status"], "warn", "{billing}");
    assert!(text(zeta).starts_with("zeta: its processes trust"), "{zeta}");
    hung.end()?;
    good.end()?;
    hang.end()
}

#[test]
fn sockets_from_before_a_process_came_to_the_workload_are_counted_cut_off_or_not() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = start(&workload("billing", "", ""))?;
    let enter = |world: &World| -> Result<Staying> {
        let mut command = world.unmanaged()?.command(["python3", "-c", ENTER]);
        command.arg(world.cgroup().join("workloads/callgate-billing.slice"));
        Staying::start(command)
    };
    let entered = enter(&world)?;
    let whole = format!("4 of {} (python3)", entered.0.id());
    let cut_off = wait::until("they are cut off", wait::PATIENCE, || {
        let found = looked(&world, "sockets").ok()?;
        (found["status"] == "warn").then_some(found)
    })?;
    assert!(
        text(&cut_off).contains("and are cut off") && text(&cut_off).ends_with(&whole),
        "{cut_off}"
    );
    entered.end()?;
    let own = Staying::start(world.workload("billing")?.command(["sh", "-c", STAY]))?;
    assert_eq!(
        text(&looked(&world, "sockets")?),
        "billing: all of its processes' sockets are its own"
    );
    own.end()?;

    // Nobody is there to cut them off.
    world.kill_agent()?;
    let entered = enter(&world)?;
    let open = looked(&world, "sockets")?;
    assert_eq!(open["status"], "fail", "{open}");
    assert!(
        text(&open).ends_with(&format!("no program sees: 5 of {} (python3)", entered.0.id())),
        "{open}"
    );
    entered.end()
}

#[test]
fn packet_and_xdp_sockets_of_a_root_process_that_was_moved_in_are_named_by_log_record_and_doctor()
-> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start(&workload("billing", "", ""))?;
    let mut command = world.unmanaged()?.command(["python3", "-c", ENTER_PAST]);
    command.arg(world.cgroup().join("workloads/callgate-billing.slice"));
    let entered = Staying::start(command)?;
    let said = world.callgate("doctor", &[])?;
    assert_eq!(said.code(), Some(3), "{said:?}");
    let named = format!("no program sees: 2 of {} (python3)", entered.0.id());
    let line = said.stdout.lines().find(|line| line.starts_with("FAIL sockets"));
    assert!(line.is_some_and(|line| line.ends_with(&named)), "{said:?}");
    for family in [17, 44] {
        let word = format!("no program sees sockets of family {family}");
        wait::until(&word, wait::PATIENCE, || {
            let log = world.agent().ok()?.log();
            let is_named = |line: &str| line.contains(&word) && line.contains("end the process");
            log.lines().any(is_named).then_some(())
        })?;
        world.expect_record(&[
            ("error.kind", "handed_socket".into()),
            (
                "error.message",
                format!("a socket from outside of the workload can't be cut off: {word}").into(),
            ),
            ("workload", "billing".into()),
            ("pid", entered.0.id().into()),
            ("comm", "python3".into()),
            ("outcome", "failed".into()),
        ])?;
    }
    entered.end()?;
    let gone = check(&world.callgate("doctor", &["--json"])?, "sockets");
    assert!(gone.is_err(), "{gone:?}");
    Ok(())
}

#[test]
fn a_connection_that_came_in_elsewhere_is_let_be_on_the_ports_in_force_alone() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start(&workload("billing", "listen = [8080]", ""))?;
    // What is in force counts, not what lies in the files.
    world.policy("identity.toml", "[[workload]]\nname = 7\n")?;
    for (port, status, found) in [
        (
            "8080",
            "pass",
            "billing: all of its processes' sockets are its own",
        ),
        ("8081", "warn", "cut off: 1 of "),
    ] {
        let mut command = world.unmanaged()?.command(["python3", "-c", ENTER_ACCEPTED]);
        command.arg(world.cgroup().join("workloads/callgate-billing.slice"));
        command.arg(port);
        let entered = Staying::start(command)?;
        let mut last = Value::Null;
        wait::until("the agent's look", wait::PATIENCE, || {
            last = looked(&world, "sockets").ok()?;
            (last["status"] == status).then_some(())
        })
        .with_context(|| format!("{port}: {last}"))?;
        assert!(text(&last).contains(found), "{port}: {last}");
        entered.end()?;
    }
    Ok(())
}

#[test]
fn a_program_of_anothers_that_may_turn_connections_is_named() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start(&workload("billing", "", ""))?;
    assert_eq!(
        text(&looked(&world, "other programs")?),
        "none on the workloads' cgroups"
    );
    let mut command = world.unmanaged()?.command(["python3", "-c", ATTACH]);
    command.arg(world.cgroup());
    let attached = Staying::start(command)?;
    let found = looked(&world, "other programs")?;
    assert_eq!(found["status"], "warn", "{found}");
    assert!(text(&found).contains("others_connect (connect4, id "), "{found}");
    attached.end()?;
    wait::until("its end", wait::PATIENCE, || {
        (looked(&world, "other programs").ok()?["status"] == "pass").then_some(())
    })
}
