//! Calls in the clear from another namespace: they leave from the host's, and a restart of the agent loses none that has begun.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdout, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use harness::launch::wait_for;
use harness::sandbox::Room;
use harness::{Upstream, World, assert_record, require, wait};
use nix::sys::signal::Signal;

use super::{Stays, curl, served};

const PLAIN: &str = "plain.example.test";
/// Well under the second that a supervisor waits for connections that were accepted.
const MEANWHILE: Duration = Duration::from_millis(200);

/// Begins a request, says so, and ends it when it is told to; prints the answer's first and last line.
const HALF: &str = r#"
import socket, sys
host, path = sys.argv[1:]
client = socket.socket()
client.settimeout(15)
client.connect((host, 80))
client.sendall(f"GET {path} HTTP/1.1\r\nHost: ".encode())
print("begun", flush=True)
sys.stdin.readline()
client.sendall(f"{host}\r\nConnection: close\r\n\r\n".encode())
answer = b""
while piece := client.recv(65536):
    answer += piece
lines = answer.decode().splitlines()
print(lines[0], lines[-1], flush=True)
"#;

fn start() -> Result<World> {
    let mut world = World::new()?;
    let from = "return 200 \"from=$remote_addr\\n\";";
    world.upstream(Upstream::new(PLAIN).plain().location("/who", from))?;
    let rule = format!(
        "[[workload]]\nname = \"billing\"\n[[workload.allow]]\nname = \"plain\"\nhost = {PLAIN:?}\nport = 80\nscheme = \"http\"\nprivate = true\n"
    );
    world.policy("netns.toml", &rule)?;
    world.keep_sockets()?;
    world.start_agent()?;
    Ok(world)
}

/// A managed client in the namespace that is in the middle of a request's head.
struct Half {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Half {
    fn start(world: &World, room: &Room, path: &str) -> Result<Self> {
        let client = world.workload("billing")?.in_netns(&room.file);
        let mut child = client
            .command(["python3", "-c", HALF, PLAIN, path])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("can't start python3")?;
        let lines = BufReader::new(child.stdout.take().context("no output")?);
        let mut half = Self { child, lines };
        assert_eq!(half.line()?, "begun\n");
        Ok(half)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        Ok(line)
    }

    fn end(mut self) -> Result<String> {
        self.child.stdin.take().context("no input")?.write_all(b"go\n")?;
        let answer = self.line()?;
        wait_for(&mut self.child, wait::PATIENCE)?;
        Ok(answer)
    }
}

#[test]
fn calls_in_the_clear_that_had_begun_in_another_namespace_are_answered_over_a_restart() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = start()?;
    let room = world.room()?;
    let _stays = Stays::start(&world, &room)?;
    let url = format!("http://{PLAIN}/who");
    served(&world, &room, &["-4", &url])?;
    let meanwhile = Half::start(&world, &room, "/who/meanwhile")?;
    let behind = Half::start(&world, &room, "/who/behind")?;
    // Until it is seen what they speak.
    thread::sleep(MEANWHILE);
    world.agent()?.signal(Signal::SIGTERM)?;
    thread::sleep(MEANWHILE);
    let from_host = "HTTP/1.1 200 OK from=203.0.113.1\n";
    assert_eq!(meanwhile.end()?, from_host);
    world.stop_agent()?;
    world.start_agent()?;
    assert_eq!(behind.end()?, from_host);
    for path in ["/who/meanwhile", "/who/behind"] {
        let record = assert_record!(world, "path" = path, "scheme" = "http");
        assert_eq!(record.text("outcome"), "completed", "{record:?}");
    }
    let reply = curl(&world, &room.file, &["-4", &url])?;
    assert_eq!(reply.stdout, "from=203.0.113.1\n200\n", "{reply:?}");
    Ok(())
}
