//! A place of its own for one test: network and mount namespace, cgroups, pins, an agent's side.
//!
//! The test starts itself again in the new namespaces. Pins die with the mount namespace; the outer half
//! removes the cgroups and the pins' directory, so nothing outlives a test that fails half-way.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use callgate::ebpf::{Events, Liveness, LoadOptions, Origin, Origins, Programs, Reason, WorkloadPlan};
use callgate::enroll::Mount;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

const INNER: &str = "CALLGATE_TEST_WORLD";
const PINS: &str = "CALLGATE_TEST_PINS";

/// Runs `body` in a world of its own. Without root it says so and passes.
pub(super) fn in_world(test: &str, body: fn(&mut World) -> Result<()>) {
    if let (Some(base), Some(pins)) = (std::env::var_os(INNER), std::env::var_os(PINS)) {
        World::enter(Path::new(&base), Path::new(&pins))
            .and_then(|mut world| body(&mut world))
            .unwrap();
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        eprintln!("{test}: skipped: loading kernel programs needs root");
        return;
    }
    let base = Mount::find()
        .unwrap()
        .path()
        .join(format!("callgate-test-{}-{test}", std::process::id()));
    let test = format!("capture::{test}");
    let remove = RemoveTree(base.clone());
    let pins = tempfile::tempdir().unwrap();
    let below = pins.path().join("bpf");
    // A thread's namespaces are its children's; the other tests' threads keep theirs.
    let output = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        let own = std::env::current_exe().unwrap();
        Command::new(own)
            .args(["--exact", &test, "--nocapture"])
            .env(INNER, &base)
            .env(PINS, &below)
            .output()
            .unwrap()
    })
    .join()
    .unwrap();
    drop(remove);
    pins.close().unwrap();
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

struct RemoveTree(PathBuf);

impl Drop for RemoveTree {
    fn drop(&mut self) {
        remove_tree(&self.0);
    }
}

/// A cgroup can be removed once its last process is reaped; that may take a moment.
fn remove_tree(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_tree(&entry.path());
        }
    }
    for _ in 0..100 {
        match fs::remove_dir(dir) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                std::thread::sleep(Duration::from_millis(20))
            }
            _ => return,
        }
    }
}

/// What the agent's side saw of each accepted connection.
pub(super) type Seen = Arc<Mutex<Vec<Option<Origin>>>>;

pub(super) struct World {
    pub(super) programs: Programs,
    pub(super) options: LoadOptions,
    pub(super) base: PathBuf,
    pub(super) seen: Seen,
    pub(super) events: Events,
    pulse: Arc<AtomicBool>,
}

impl World {
    fn enter(base: &Path, pins: &Path) -> Result<Self> {
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        for line in [
            "link set lo up",
            "link add out0 type veth peer name far0",
            "link set out0 up",
            "link set far0 up",
            "addr add 203.0.113.1/24 dev out0",
            "addr add 2001:db8:113::1/64 dev out0 nodad",
        ] {
            ensure!(
                Command::new("ip").args(line.split(' ')).status()?.success(),
                "ip {line} failed"
            );
        }
        for dir in ["agent", "parent/one", "parent/two"] {
            fs::create_dir_all(base.join(dir))?;
        }
        fs::write(base.join("agent/cgroup.procs"), "0")?;
        let mount = Mount::find()?.path().to_owned();
        let below = base.strip_prefix(&mount)?.to_owned();
        let mut options = LoadOptions::new(pins.to_owned(), mount, below.join("parent"));
        options.guard = below;
        let mut programs = Programs::load(&options)?;
        let events = programs.events().context("events were taken")?;
        let mut world = Self {
            programs,
            options,
            base: base.to_owned(),
            seen: Seen::default(),
            events,
            pulse: Arc::new(AtomicBool::new(true)),
        };
        world.beat()?;
        Ok(world)
    }

    /// Starts from nothing with other options.
    pub(super) fn reload(&mut self, options: LoadOptions) -> Result<()> {
        let bpffs_dir = self.options.bpffs_dir.with_file_name("again");
        self.options = LoadOptions { bpffs_dir, ..options };
        self.stop_beating();
        self.pulse = Arc::new(AtomicBool::new(true));
        self.programs = Programs::load(&self.options)?;
        self.events = self.programs.events().context("events were taken")?;
        self.beat()
    }

    /// Starts from nothing with type information that tells no offsets.
    pub(super) fn programs_without_type_information(&mut self) -> Result<()> {
        self.reload(LoadOptions {
            type_info: "/dev/null".into(),
            ..self.options.clone()
        })
    }

    fn beat(&mut self) -> Result<()> {
        let mut liveness = Liveness::new(self.programs.worker_fds()?.liveness)?;
        liveness.beat()?;
        let pulse = Arc::clone(&self.pulse);
        std::thread::spawn(move || {
            while pulse.load(Ordering::Relaxed) {
                liveness.beat().unwrap();
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        Ok(())
    }

    /// The agent falls silent.
    pub(super) fn stop_beating(&self) {
        self.pulse.store(false, Ordering::Relaxed);
    }

    pub(super) fn cgroup(&self, name: &str) -> PathBuf {
        self.base.join("parent").join(name)
    }

    /// A cgroup of nobody's, beside the workloads.
    pub(super) fn beside(&self) -> Result<PathBuf> {
        let beside = self.base.join("beside");
        fs::create_dir_all(&beside)?;
        Ok(beside)
    }

    /// A plan with the ports that tests dial.
    pub(super) fn plan(&self, number: u32, name: &str) -> WorkloadPlan {
        WorkloadPlan {
            number,
            cgroup: self.cgroup(name),
            dial_ports: vec![443, 8443],
            direct: Vec::new(),
            listen_ports: Vec::new(),
        }
    }

    /// Arms a workload and serves it on both families; gives the listeners' addresses.
    pub(super) fn serve(&mut self, number: u32, name: &str) -> Result<[SocketAddr; 2]> {
        self.programs.arm(&self.plan(number, name))?;
        Ok([
            self.listen(number, "127.0.0.1:0")?,
            self.listen(number, "[::1]:0")?,
        ])
    }

    fn listen(&mut self, number: u32, on: &str) -> Result<SocketAddr> {
        let listener = TcpListener::bind(on)?;
        let address = listener.local_addr()?;
        self.programs.mark_listener(number, listener.as_fd())?;
        let origins = Origins::new(self.programs.worker_fds()?.origins)?;
        let seen = Arc::clone(&self.seen);
        std::thread::spawn(move || accept(&listener, &origins, &seen));
        Ok(address)
    }

    /// A DNS stub that answers any question with its own address.
    pub(super) fn serve_dns(&mut self, number: u32, on: &str) -> Result<SocketAddr> {
        let socket = UdpSocket::bind(on)?;
        self.programs.mark_listener(number, socket.as_fd())?;
        let address = socket.local_addr()?;
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                socket.send_to(b"stub", from).unwrap();
            }
        });
        Ok(address)
    }

    /// Runs a probe in a cgroup; gives its line.
    pub(super) fn probe(&self, cgroup: &Path, arguments: &[&str]) -> Result<String> {
        let output = probe(cgroup, arguments).stdin(Stdio::null()).output()?;
        let line = String::from_utf8(output.stdout)?.trim().to_owned();
        if line.is_empty() {
            bail!(
                "the probe said nothing: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(line)
    }

    /// Runs a probe in workload `one`.
    pub(super) fn one(&self, arguments: &[&str]) -> Result<String> {
        self.probe(&self.cgroup("one"), arguments)
    }

    /// How often a reason was counted.
    pub(super) fn count(&self, wanted: Reason) -> Result<u64> {
        let counters = self.programs.counters()?;
        counters
            .iter()
            .find(|(reason, _)| *reason == wanted)
            .map(|(_, count)| *count)
            .context("no such counter")
    }

    /// Takes the origins seen so far.
    pub(super) fn take_seen(&self) -> Vec<Option<Origin>> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }

    /// Reasons of the events so far.
    pub(super) fn reasons(&mut self) -> Vec<Reason> {
        let mut reasons = Vec::new();
        self.events.drain(10_000, |report| reasons.push(report.reason));
        reasons
    }
}

pub(super) fn probe(cgroup: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_probe"));
    command.arg(cgroup).args(arguments);
    command
}

/// Answers each connection with what the kernel said about it.
fn accept(listener: &TcpListener, origins: &Origins, seen: &Seen) {
    while let Ok((mut stream, from)) = listener.accept() {
        let origin = origins.of(&stream).unwrap();
        seen.lock().unwrap().push(origin);
        let line = origin.map_or_else(
            || "unknown ".to_owned(),
            |origin| {
                format!(
                    "workload={} dst={} from={from} ",
                    origin.workload(),
                    origin.destination()
                )
            },
        );
        // The client ends its side first: until then it has an established connection to try things on, and closing
        // over unread data would reset it. It may have reset already.
        if stream.read_to_end(&mut Vec::new()).is_ok() {
            drop(stream.write_all(line.as_bytes()));
        }
    }
}
