//! Workloads in other network namespaces than the agent's: served there, their calls leave from there, and nothing is
//! left of it when they are gone.

/// In containers.
mod container;
/// From one run of the agent to the next.
mod kept;
/// How soon.
mod noticed;
/// Without TLS.
mod plain;
/// In containers of users.
mod rootless;

pub(crate) use container::{IN_VAIN, TRANSLATE};

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use harness::launch::{self, Place, wait_for};
use harness::sandbox::Room;
use harness::{Output, Upstream, World, assert_record, require, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::audit::worker;
use crate::identity::{API, CODE, NOBODY, status, workload};

/// Calls over a socket that was made before the process went to another namespace, and over one that was made there.
const MOVES: &str = r#"
import ctypes, os, socket, ssl, sys
room, bundle, host = sys.argv[1:]
context = ssl.create_default_context(cafile=bundle)
def call(plain):
    plain.settimeout(5)
    plain.connect((host, 443))
    with context.wrap_socket(plain, server_hostname=host) as stream:
        stream.sendall(f"GET /who HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while piece := stream.recv(65536):
            answer += piece
    print(answer.decode().splitlines()[-1])
before = socket.socket()
assert ctypes.CDLL(None, use_errno=True).setns(os.open(room, os.O_RDONLY), 0x40000000) == 0
call(before)
call(socket.socket())
"#;

/// Keeps more network namespaces than a workload is served in.
const MANY: &str = r#"
n=0
while [ $n -lt 70 ]; do
    unshare --net sh -c 'ip link set lo up; exec sleep 100' &
    n=$((n+1))
done
wait
"#;

/// Goes away and home again without a pause, for two seconds, each time with a call that is refused: where it goes belongs to a
/// user namespace that anybody can make. Prints the cookie of the home (SO_NETNS_COOKIE), and how often it was refused.
const FLAPS: &str = r#"
import ctypes, os, socket, struct, time
NEWUSER, NEWNET = 0x10000000, 0x40000000
libc = ctypes.CDLL(None, use_errno=True)
mine, its = os.pipe()
child = os.fork()
if child == 0:
    assert libc.unshare(NEWUSER | NEWNET) == 0
    os.write(its, b"x")
    time.sleep(60)
    os._exit(0)
assert os.read(mine, 1) == b"x"
home, away = (os.open(f"/proc/{process}/ns/net", os.O_RDONLY) for process in ("self", child))
with socket.socket() as there:
    cookie = struct.unpack("Q", there.getsockopt(socket.SOL_SOCKET, 71, 8))[0]
refused, end = 0, time.monotonic() + 2
while time.monotonic() < end:
    assert libc.setns(away, NEWNET) == 0
    with socket.socket() as client:
        refused += client.connect_ex(("203.0.113.10", 443)) != 0
    for _ in range(20):
        assert libc.setns(home, NEWNET) == 0
        assert libc.setns(away, NEWNET) == 0
    assert libc.setns(home, NEWNET) == 0
os.kill(child, 9)
os.waitpid(child, 0)
print(cookie, refused)
"#;

/// How long one call may take.
const CALL_LIMIT: Duration = Duration::from_secs(5);

/// The upstream at API that tells its clients on `/who` from where they came.
fn with_upstream() -> Result<World> {
    let mut world = World::new()?;
    world.upstream(Upstream::new(API).location("= /who", "return 200 \"from=$remote_addr\\n\";"))?;
    world.policy("netns.toml", &workload("billing", "", ""))?;
    Ok(world)
}

fn start() -> Result<World> {
    let mut world = with_upstream()?;
    world.start_agent()?;
    Ok(world)
}

/// A managed curl in this namespace. The first connection may come before the agent has seen where it is.
fn curl(world: &World, netns: &Path, args: &[&str]) -> Result<Output> {
    let client = world.workload("billing")?.in_netns(netns);
    let limit = wait::scaled(CALL_LIMIT).as_secs().to_string();
    let fixed = ["curl", "-sS", "-m", limit.as_str(), "-w", CODE];
    client.run(fixed.iter().chain(args))
}

/// Calls until it is answered: a process is seen where it is at the next look.
fn served(world: &World, room: &Room, args: &[&str]) -> Result<Output> {
    let mut last = None;
    let answered = wait::until("an answer in the namespace", wait::PATIENCE, || {
        let reply = last.insert(curl(world, &room.file, args).ok()?);
        (status(reply) == 200).then(|| reply.clone())
    });
    answered.with_context(|| format!("the last answer: {last:?}"))
}

/// A managed process that stays in the namespace until it is dropped.
struct Stays(Child);

impl Stays {
    fn start(world: &World, room: &Room) -> Result<Self> {
        let client = world.workload("billing")?.in_netns(&room.file);
        let mut command = client.command(["sh", "-c", "read -r end"]);
        let child = command.stdin(Stdio::piped()).spawn().context("can't start sh")?;
        Ok(Self(child))
    }

    fn end(mut self) -> Result<()> {
        drop(self.0.stdin.take());
        wait_for(&mut self.0, wait::PATIENCE)?;
        Ok(())
    }
}

#[test]
fn a_workload_in_another_namespace_is_served_there_and_its_calls_leave_from_there() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = start()?;
    let room = world.room()?;
    let _stays = Stays::start(&world, &room)?;
    // The second call may go on the connection that the first one left, whatever way its own came.
    let from = [room.v4.to_string(), room.v6.to_string()].map(|address| format!("from={address}\n"));
    for (family, from) in [("-4", &from[..1]), ("-6", &from[..])] {
        let url = format!("https://{API}/who?{family}");
        let reply = served(&world, &room, &[family, &url])?;
        assert!(from.iter().any(|from| reply.stdout.contains(from)), "{reply:?}");
    }
    let reply = world
        .workload("billing")?
        .run(["curl", "-sS", "-4", &format!("https://{API}/who")])?;
    assert_eq!(reply.stdout, "from=203.0.113.1\n");
    let refused = curl(
        &world,
        &room.file,
        &[
            "https://other.example.test/",
            "--resolve",
            "other.example.test:443:203.0.113.10",
        ],
    )?;
    assert_ne!(status(&refused), 200);
    assert_record!(world, "sni" = "other.example.test", "decision" = "deny");
    Ok(())
}

#[test]
fn nothing_of_a_namespace_is_kept_when_its_processes_are_gone() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = start()?;
    let room = world.room()?;
    let stays = Stays::start(&world, &room)?;
    served(&world, &room, &[&format!("https://{API}/who")])?;
    world.drop_room(&room)?;
    assert!(world.has_room(&room)?);
    stays.end()?;
    wait::until("the end of the namespace", wait::PATIENCE, || {
        world
            .has_room(&room)
            .ok()
            .and_then(|there| (!there).then_some(()))
    })
}

#[test]
fn a_namespace_that_anybody_can_make_is_not_served() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let script = format!(
        "ip link set lo up; n=0; while [ $n -lt 15 ]; do curl -sS -m 2 --resolve {API}:443:203.0.113.10 https://{API}/who && exit 3; n=$((n+1)); sleep 0.1; done; exit 9"
    );
    let unshared = [
        "unshare",
        "--user",
        "--map-root-user",
        "--net",
        "sh",
        "-c",
        &script,
    ];
    // As a service would: `callgate exec` does not let its commands do that.
    let place = Place::in_cgroup(world.cgroup().join("workloads/callgate-billing.slice"));
    let reply = place.as_user(NOBODY).run(unshared)?;
    assert_eq!(reply.code(), Some(9), "{reply:?}");
    wait::until("records of the refusals", wait::PATIENCE, || {
        let records = world.records().ok()?;
        records
            .iter()
            .any(|one| one.text("reason") == "no_listener" && one.field("uid") == NOBODY)
            .then_some(())
    })
}

#[test]
fn names_are_answered_in_another_namespace_by_udp_and_tcp() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = start()?;
    let room = world.room()?;
    let _stays = Stays::start(&world, &room)?;
    served(&world, &room, &[&format!("https://{API}/who")])?;
    let client = world.workload("billing")?.in_netns(&room.file);
    for server in ["@192.0.2.53", "@2001:db8::53"] {
        for way in ["+tcp", "+notcp"] {
            let asked = ["dig", server, "+time=5", "+tries=1", way, "+short", API, "A"];
            assert_eq!(client.run(asked)?.ok()?, "203.0.113.10\n", "{server} {way}");
        }
    }
    let other = ["dig", "@192.0.2.53", "+time=5", "+tries=1", "other.example.test"];
    let reply = client.run(other)?.ok()?;
    assert!(reply.contains("NXDOMAIN"), "{reply}");
    Ok(())
}

#[test]
fn a_new_worker_and_a_new_agent_serve_in_the_namespace_again() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = start()?;
    let room = world.room()?;
    let _stays = Stays::start(&world, &room)?;
    let from = format!("from={}\n", room.v4);
    let args = ["-4", &format!("https://{API}/who")];
    served(&world, &room, &args)?;
    let first = worker(&world)?;
    kill(Pid::from_raw(first.try_into()?), Signal::SIGKILL)?;
    wait::until("another worker", wait::PATIENCE, || {
        worker(&world).ok().filter(|pid| *pid != first)
    })?;
    let reply = served(&world, &room, &args)?;
    assert!(reply.stdout.contains(&from), "{reply:?}");
    world.kill_agent()?;
    let dead = curl(&world, &room.file, &args);
    assert!(dead.is_ok_and(|reply| status(&reply) != 200));
    world.start_agent()?;
    let reply = served(&world, &room, &args)?;
    assert!(reply.stdout.contains(&from), "{reply:?}");
    Ok(())
}

#[test]
fn a_process_that_moves_on_is_served_by_where_its_socket_was_made() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = start()?;
    let room = world.room()?;
    let _stays = Stays::start(&world, &room)?;
    served(&world, &room, &[&format!("https://{API}/who")])?;
    let place = Place::in_cgroup(world.cgroup().join("workloads/callgate-billing.slice"));
    let bundle = world.dir().join("run/trust/ca-bundle.pem").display().to_string();
    let file = room.file.display().to_string();
    let told = place.run(["python3", "-c", MOVES, &file, &bundle, API])?.ok()?;
    assert_eq!(told, format!("from=203.0.113.1\nfrom={}\n", room.v4));
    Ok(())
}

#[test]
fn a_workload_in_too_many_namespaces_is_served_in_those_it_was_in_first_and_others_go_on() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = World::new()?;
    world.upstream(Upstream::new(API).location("= /who", "return 200 \"from=$remote_addr\\n\";"))?;
    let both = workload("billing", "", "") + &workload("other", "", "");
    world.policy("netns.toml", &both)?;
    world.start_agent()?;
    let room = world.room()?;
    let _stays = Stays::start(&world, &room)?;
    let url = format!("https://{API}/who");
    served(&world, &room, &[&url])?;
    let place = Place::in_cgroup(world.cgroup().join("workloads/callgate-billing.slice"));
    let mut many = place
        .command(["sh", "-c", MANY])
        .spawn()
        .context("can't start sh")?;
    wait::until("a word of too many namespaces", wait::PATIENCE, || {
        let log = world.agent().ok()?.log();
        log.contains("more network namespaces than it is served in")
            .then_some(())
    })?;
    // With so many processes a small machine may keep the agent from its pulse for a moment, which refuses calls too.
    let without_listener = || -> Result<usize> {
        let records = world.records()?;
        Ok(records
            .iter()
            .filter(|one| one.text("reason") == "no_listener")
            .count())
    };
    let before = without_listener()?;
    served(&world, &room, &[&url])?;
    assert_eq!(without_listener()?, before);
    let other = world.workload("other")?;
    wait::until("an answer to the other workload", wait::PATIENCE, || {
        let reply = other.run(["curl", "-sS", "-4", &url]).ok()?;
        (reply.stdout == "from=203.0.113.1\n").then_some(())
    })?;
    many.kill()?;
    many.wait()?;
    Ok(())
}

#[test]
fn a_process_that_goes_away_and_home_again_has_the_host_taken_for_no_other_namespace() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let world = start()?;
    let place = Place::in_cgroup(world.cgroup().join("workloads/callgate-billing.slice"));
    let told = place.run(["python3", "-c", FLAPS])?.ok()?;
    let (cookie, refused) = told.trim().split_once(' ').context("two numbers")?;
    assert!(refused.parse::<u32>()? > 100, "{told}");
    let log = world.agent()?.log();
    assert!(!log.contains(&format!("netns={cookie}")), "{log}");
    let home = ["curl", "-sS", "-4", &format!("https://{API}/who")];
    assert_eq!(world.workload("billing")?.run(home)?.stdout, "from=203.0.113.1\n");
    Ok(())
}
