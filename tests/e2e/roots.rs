//! The roots that upstreams are verified by: the host's as they are now, also for who called before they changed.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use anyhow::{Context, Result};
use harness::ca::Ca;
use harness::{Scripted, Upstream, World, assert_record, require, wait};

use crate::audit::{agent_status, worker};
use crate::identity::API;
use crate::replace::replace;

/// The world's own: the test's thread sees what the agent sees.
const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Takes its time, and is one of the authorities' that the host trusts.
const SLOW: &str = "slow.example.test";
/// As many workers drain at once before the agent replaces no more.
const MANY: usize = 4;

/// Calls the host for each line, on one connection for as long as that is kept; tells the status and the connection's port.
const KEPT: &str = "import http.client, sys
connection = http.client.HTTPSConnection(sys.argv[1], timeout=10)
for path in sys.stdin:
    connection.request('GET', path.strip())
    port = connection.sock.getsockname()[1]
    answer = connection.getresponse()
    answer.read()
    print(answer.status, port, flush=True)";

/// A world with an API that is proven by an authority which is none of the host's.
struct Stranger {
    world: World,
    authority: Ca,
    slow: Scripted,
    roots: Vec<u8>,
}

impl Stranger {
    fn start() -> Result<Self> {
        let mut world = World::new()?;
        let place = world.dir().join("stranger");
        fs::create_dir(&place).context("can't make a directory")?;
        let authority = Ca::named(&place, "another authority")?;
        world.upstream(Upstream::new(API).with_leaf(authority.issue(API)?))?;
        let slow = world.scripted(SLOW, Some(SLOW))?;
        let allow = |host| format!("[[workload.allow]]\nhost = {host:?}\nprivate = true\n");
        let policy = format!("[[workload]]\nname = \"billing\"\n{}{}", allow(API), allow(SLOW));
        world.policy("roots.toml", &policy)?;
        world.start_agent()?;
        let roots = fs::read(BUNDLE).context("can't read the host's roots")?;
        Ok(Self {
            world,
            authority,
            slow,
            roots,
        })
    }

    /// Makes the authority one of the host's.
    fn add(&self) -> Result<()> {
        let own = fs::read(self.authority.certificate()).context("can't read the authority")?;
        Self::write(&[self.roots.as_slice(), &own].concat())
    }

    /// Takes it away.
    fn take(&self) -> Result<()> {
        Self::write(&self.roots)
    }

    /// In place: what is bound over the host's file is this one.
    fn write(roots: &[u8]) -> Result<()> {
        fs::write(BUNDLE, roots).context("can't write the host's roots")
    }
}

/// A process that ends with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A client that keeps its connection.
struct Kept {
    #[expect(dead_code, reason = "ends with this")]
    child: Ended,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Kept {
    fn start(world: &World) -> Result<Self> {
        let mut command = world
            .workload("billing")?
            .command(["/usr/bin/python3", "-c", KEPT, API]);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.context("can't start python3")?;
        let input = child.stdin.take().context("a pipe")?;
        let output = BufReader::new(child.stdout.take().context("a pipe")?);
        Ok(Self {
            child: Ended(child),
            input,
            output,
        })
    }

    /// Calls; gives status and port.
    fn call(&mut self, path: &str) -> Result<(u16, u16)> {
        writeln!(self.input, "{path}").context("the client is gone")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let words = line.trim().split_once(' ');
        let (status, port) = words.with_context(|| format!("no answer to {path}: {line:?}"))?;
        Ok((status.parse()?, port.parse()?))
    }

    /// Calls until the status is this one; gives the ports that it called from.
    fn call_until(&mut self, path: &str, status: u16) -> Result<Vec<u16>> {
        let mut ports = Vec::new();
        wait::until("the agent goes by the new roots", wait::PATIENCE, || {
            match self.call(path) {
                Ok((answered, port)) => {
                    ports.push(port);
                    (answered == status).then_some(Ok(()))
                }
                Err(error) => Some(Err(error)),
            }
        })??;
        Ok(ports)
    }
}

#[test]
fn upstreams_are_verified_by_the_hosts_roots_of_now_on_connections_of_before_too() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let stranger = Stranger::start()?;
    let world = &stranger.world;
    let serving = worker(world)?;
    let mut client = Kept::start(world)?;
    let (status, port) = client.call("/before")?;
    assert_eq!(status, 502);
    let record = assert_record!(
        world,
        "path" = "/before",
        "outcome" = "failed",
        "error.source" = "upstream",
        "error.kind" = "upstream_certificate"
    );
    let message = record.text("error.message");
    assert!(message.contains("no trusted root has issued it"), "{message}");

    stranger.add()?;
    let mut ports = client.call_until("/added", 200)?;
    // A connection of before is in the agent's hands now, for the next call.
    assert_eq!(client.call("/kept")?, (200, port));
    stranger.take()?;
    ports.extend(client.call_until("/taken", 502)?);
    assert_eq!(client.call("/after")?, (502, port));
    assert_record!(
        world,
        "path" = "/after",
        "outcome" = "failed",
        "error.kind" = "upstream_certificate"
    );
    assert!(ports.iter().all(|one| *one == port), "{port}: {ports:?}");
    assert_eq!(worker(world)?, serving, "no call had to end for it");
    let arrived = world.server(API)?.log()?;
    for path in ["/before", "/after"] {
        assert!(arrived.iter().all(|one| one.uri != path), "{path}: {arrived:?}");
    }
    Ok(())
}

#[test]
fn roots_that_change_while_many_workers_drain_are_followed_all_the_same() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let stranger = Stranger::start()?;
    let world = &stranger.world;
    let mut slow = Vec::new();
    for number in 0..MANY {
        let url = format!("https://{SLOW}/hang/{number}");
        let mut command = world.workload("billing")?.command(["curl", "-sS", &url]);
        let client = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        slow.push(Ended(client.context("can't start curl")?));
        wait::until("the call is under way", wait::PATIENCE, || {
            (stranger.slow.arrived().ok()?.len() > number).then_some(())
        })?;
        replace(world)?;
    }
    let draining = agent_status(world)?.1["draining"].clone();
    assert_eq!(draining, MANY, "their calls take longer than this");
    stranger.add()?;
    let mut client = Kept::start(world)?;
    client.call_until("/added", 200)?;
    // A worker that comes later goes by the same.
    drop(slow);
    wait::until("the old workers' end", wait::PATIENCE, || {
        (agent_status(world).ok()?.1["draining"] == 0).then_some(())
    })?;
    replace(world)?;
    assert_eq!(Kept::start(world)?.call("/later")?.0, 200);
    Ok(())
}
