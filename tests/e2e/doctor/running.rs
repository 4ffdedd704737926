//! What the doctor finds of processes that run: whom they trust, and sockets and programs that are others'.

use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::{Context, Result, ensure};
use harness::launch::wait_for;
use harness::{World, require, wait};
use serde_json::Value;

use super::check;
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
fn a_good_host_passes_in_every_line_and_the_code_is_0() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = World::new()?;
    world.policy("good.toml", &workload("billing", "", ""))?;
    world.settings(&format!("resolvers = [\"{}\"]", resolver()?));
    world.start_agent()?;
    let running = Staying::start(world.workload("billing")?.command(["sh", "-c", STAY]))?;
    let said = world.callgate("doctor", &[])?;
    assert_eq!(said.code(), Some(0), "{said:?}");
    assert!(said.stdout.ends_with("\ncallgate can run here.\n"), "{said:?}");
    let checks: Vec<_> = said.stdout.lines().take_while(|line| !line.is_empty()).collect();
    assert!(checks.len() > 20, "{said:?}");
    assert!(checks.iter().all(|line| line.starts_with("pass ")), "{said:?}");
    let json = world.callgate("doctor", &["--json"])?;
    let document: Value = serde_json::from_str(&json.stdout)?;
    assert_eq!((json.code(), &document["ok"]), (Some(0), &true.into()));
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
            "billing: its processes trust the agent's root (0 find it among the host's, 1 by a variable)"
        )
    );
    let bare = Staying::start(client.command(["env", "-i", "/bin/sh", "-c", STAY]))?;
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
