//! What a managed process runs and mounts can keep nobody waiting but itself.

use std::fs;
use std::io::Write as _;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use harness::launch::wait_for;
use harness::{Upstream, World, assert_record, require, wait};
use nix::sys::signal::Signal;

use crate::identity::{API, CODE, status, workload};

/// A FUSE file system on argv[1] with one file `p` of argv[2]'s content, which stops telling the file's attributes
/// as soon as argv[3] exists.
const SILENT: &str = r#"
import ctypes, os, stat, struct, sys
mount, source, silent = sys.argv[1:4]
data = open(source, "rb").read()
libc = ctypes.CDLL(None, use_errno=True)
fd = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
if libc.mount(b"fuse", mount.encode(), b"fuse", 0, options) != 0:
    sys.exit(f"no FUSE: {os.strerror(ctypes.get_errno())}")
print("mounted", flush=True)
def attributes(node):
    root = node == 1
    mode = (stat.S_IFDIR if root else stat.S_IFREG) | 0o755
    return struct.pack("<6Q10I", node, 0 if root else len(data), 8, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
def reply(unique, body=b"", error=0):
    os.write(fd, struct.pack("<IiQ", 16 + len(body), error, unique) + body)
while True:
    request = os.read(fd, 1 << 20)
    _, opcode, unique, node = struct.unpack("<IIQQ", request[:24])
    body = request[40:]
    if opcode == 26:  # INIT
        reply(unique, struct.pack("<IIIIHHIIHHIIIIIIII", 7, 31, 65536, 0, 12, 9, 131072, 1, 32, 0, *([0] * 8)))
    elif opcode == 1 and body.split(b"\0")[0] == b"p":  # LOOKUP
        reply(unique, struct.pack("<QQQQII", 2, 1, 0, 0, 0, 0) + attributes(2))
    elif opcode == 1:
        reply(unique, error=-2)
    elif opcode in (3, 17) and os.path.exists(silent):  # GETATTR, STATFS
        continue
    elif opcode == 3:
        reply(unique, struct.pack("<QII", 0, 0, 0) + attributes(node))
    elif opcode in (14, 27):  # OPEN, OPENDIR
        reply(unique, struct.pack("<QII", 1, 0, 0))
    elif opcode == 15:  # READ
        offset, size = struct.unpack("<QI", body[8:20])
        reply(unique, data[offset:offset + size])
    elif opcode == 17:
        reply(unique, struct.pack("<5Q4I24x", 1000, 1000, 1000, 10, 10, 4096, 255, 4096, 0))
    elif opcode in (2, 42, 36):  # FORGET, BATCH_FORGET, INTERRUPT
        continue
    elif opcode in (25, 18, 29, 34):  # FLUSH, RELEASE, RELEASEDIR, ACCESS
        reply(unique)
    else:
        reply(unique, error=-38)
"#;

/// Waits for a line, connects to a port that no rule names, and stays.
const CONNECT: &str = r#"
import socket, sys
print("ready", flush=True)
sys.stdin.readline()
try:
    socket.create_connection((sys.argv[1], 81), 5)
except OSError as error:
    print(error, flush=True)
sys.stdin.readline()
"#;

/// Ends the process with the test: its file system answers with errors then, and whoever hangs goes on.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // One that has ended already is as good.
        drop(self.0.kill().and_then(|()| self.0.wait()));
    }
}

/// Waits until the file holds the text.
fn says(path: &std::path::Path, text: &str) -> Result<()> {
    wait::until(text, wait::PATIENCE, || {
        let said = fs::read_to_string(path).ok()?;
        said.contains(text).then_some(())
    })
}

#[test]
fn a_program_on_a_file_system_that_never_answers_holds_up_nobody() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = World::new()?;
    let api = world.upstream(Upstream::new(API))?.v4().ip().to_string();
    let policy =
        workload("billing", "", "exe = \"/usr/bin/curl\"") + &workload("hog", "", "paths = [\"/none\"]");
    world.policy("stuck.toml", &policy)?;
    world.start_agent()?;
    let (mount, silent) = (world.dir().join("fuse"), world.dir().join("silent"));
    fs::create_dir(&mount)?;
    let python = fs::canonicalize("/usr/bin/python3")?;
    let told = |name: &str| fs::File::create(world.dir().join(name));
    let server = world
        .unmanaged()?
        .command([
            "python3".as_ref(),
            "-c".as_ref(),
            SILENT.as_ref(),
            mount.as_os_str(),
            python.as_os_str(),
            silent.as_os_str(),
        ])
        .stdout(told("server")?)
        .spawn()?;
    let _server = Ended(server);
    says(&world.dir().join("server"), "mounted")?;
    let mut hog = world
        .workload("hog")?
        .env("PYTHONHOME", "/usr")
        .command([
            mount.join("p").as_os_str(),
            "-c".as_ref(),
            CONNECT.as_ref(),
            api.as_ref(),
        ])
        .stdin(Stdio::piped())
        .stdout(told("hog")?)
        .spawn()?;
    let mut orders = hog.stdin.take().context("no pipe")?;
    let _hog = Ended(hog);
    says(&world.dir().join("hog"), "ready")?;

    fs::write(&silent, "")?;
    orders.write_all(b"go\n")?;
    assert_record!(
        world,
        "kind" = "kernel_refusal",
        "workload" = "hog",
        "reason" = "port_not_named"
    );
    assert_eq!(
        world.agent()?.command("status", &[])?.code(),
        Some(0),
        "the supervisor answers"
    );
    let curl = ["curl", "-sS", "-o", "/dev/null", "-w", CODE];
    let url = format!("https://{API}/calls");
    let reply = world
        .workload("billing")?
        .run(curl.into_iter().chain([url.as_str()]))?;
    assert_eq!(status(&reply), 200, "{reply:?}");
    Ok(())
}

#[test]
fn a_revocation_does_not_wait_for_a_slow_helper() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = World::new()?;
    world.upstream(Upstream::new(API))?;
    let other = workload("other", "", "credential = \"slow\"")
        + &format!("[credential.slow]\nhosts = [\"{API}:443\"]\nscheme = \"bearer\"\n")
        + "source = { exec = [\"/bin/sleep\", \"600\"], timeout_seconds = 300 }\n";
    world.policy("stuck.toml", &workload("billing", "", ""))?;
    world.start_agent()?;
    // One client all along: while the agent reloads, nobody enters a workload.
    let script = r#"
        call() { curl -sS -m 5 -o /dev/null -w '%{http_code}' "$0"; }
        call
        until [ "$(call)" = 403 ]; do :; done
    "#;
    let mut client = world
        .workload("billing")?
        .command(["sh", "-c", script, &format!("https://{API}/calls")])
        .stdout(fs::File::create(world.dir().join("client"))?)
        .spawn()?;
    says(&world.dir().join("client"), "200")?;
    world.policy(
        "stuck.toml",
        &(workload("billing", "", "paths = [\"/none\"]") + &other),
    )?;
    let asked = Instant::now();
    world.agent()?.signal(Signal::SIGHUP)?;
    assert!(wait_for(&mut client, wait::PATIENCE)?.success());
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
    Ok(())
}
