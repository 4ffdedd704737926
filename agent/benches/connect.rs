//! What capture adds to connect(): one call from an unmanaged process, one that a direct rule lets pass, and one that
//! is turned to the agent's listener.
//!
//! Needs root: it loads the kernel programs in network and mount namespaces of its own. The calls are made by child
//! processes, since programs follow a process's cgroup. Each measures connect() alone and tells the median, times the
//! number of calls: one that was interrupted says nothing about connect().
#![expect(clippy::unwrap_used, reason = "a benchmark may end here")]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a child's answer, a reason to skip"
)]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use callgate::ebpf::{Direct, Liveness, LoadOptions, Programs, Transport, WorkloadPlan};
use callgate::enroll::Mount;
use criterion::Criterion;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, SockAddr, Socket, Type};

const CHILD: &str = "CALLGATE_BENCH_CONNECT";

fn main() {
    if let Some(to) = std::env::var_os(CHILD) {
        return answer(to.to_str().unwrap().parse().unwrap());
    }
    if !nix::unistd::geteuid().is_root() {
        eprintln!("connect: skipped: loading kernel programs needs root");
        return;
    }
    let base = Mount::find()
        .unwrap()
        .path()
        .join(format!("callgate-bench-{}", std::process::id()));
    let _removed = RemoveTree(base.clone());
    let place = Place::make(&base);
    let mut criterion = Criterion::default()
        .measurement_time(Duration::from_secs(10))
        .configure_from_args();
    let mut group = criterion.benchmark_group("connect");
    for (name, cgroup, to) in [
        ("unmanaged", "beside", place.server),
        ("direct", "parent/one", place.server),
        ("redirected", "parent/one", ([192, 0, 2, 1], 443).into()),
    ] {
        let mut client = Client::start(&base.join(cgroup), to);
        group.bench_function(name, |bencher| bencher.iter_custom(|count| client.connect(count)));
    }
    group.finish();
    criterion.final_summary();
}

/// The kernel side with one workload, its listener, and a server that a direct rule names.
struct Place {
    server: SocketAddr,
    _programs: Programs,
    pins: tempfile::TempDir,
}

impl Drop for Place {
    /// What something is mounted on can't be removed.
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.pins.path().join("bpf"), MntFlags::MNT_DETACH) {
            eprintln!("connect: the pins can't be unmounted: {error}");
        }
    }
}

impl Place {
    fn make(base: &Path) -> Self {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let up = Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status()
            .unwrap();
        assert!(up.success(), "ip failed");
        for name in ["agent", "beside", "parent/one"] {
            fs::create_dir_all(base.join(name)).unwrap();
        }
        fs::write(base.join("agent/cgroup.procs"), "0").unwrap();
        let pins = tempfile::tempdir().unwrap();
        let mount = Mount::find().unwrap().path().to_owned();
        let parent = base.strip_prefix(&mount).unwrap().join("parent");
        let options = LoadOptions::new(pins.path().join("bpf"), mount, parent);
        let mut programs = Programs::load(&options).unwrap();
        let server = serve(TcpListener::bind("127.0.0.1:0").unwrap());
        programs
            .arm(&WorkloadPlan {
                number: 1,
                cgroup: base.join("parent/one"),
                dial_ports: vec![443],
                direct: vec![Direct {
                    net: "127.0.0.1/32".parse().unwrap(),
                    port: Some(server.port()),
                    transport: Transport::Tcp,
                }],
                listen_ports: Vec::new(),
            })
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        programs.mark_listener(1, listener.as_fd()).unwrap();
        serve(listener);
        let mut liveness = Liveness::new(programs.worker_fds().unwrap().liveness).unwrap();
        liveness.beat().unwrap();
        std::thread::spawn(move || {
            while liveness.beat().is_ok() {
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        Self {
            server,
            _programs: programs,
            pins,
        }
    }
}

/// Accepts and closes.
fn serve(listener: TcpListener) -> SocketAddr {
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || while listener.accept().is_ok() {});
    address
}

/// A child process in a cgroup.
struct Client {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Client {
    fn start(cgroup: &Path, to: SocketAddr) -> Self {
        let mut child = Command::new("/bin/sh")
            .args(["-c", r#"echo 0 >"$0" && exec "$1""#])
            .arg(cgroup.join("cgroup.procs"))
            .arg(std::env::current_exe().unwrap())
            .env(CHILD, to.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    /// The time that so many calls of connect() took.
    fn connect(&mut self, count: u64) -> Duration {
        writeln!(self.input, "{count}").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        Duration::from_nanos(line.trim().parse().unwrap())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// The child: for each line with a number, connects as often and says how long connect() took.
fn answer(to: SocketAddr) {
    let to = to.into();
    for line in std::io::stdin().lines() {
        let count: u64 = line.unwrap().parse().unwrap();
        let mut spent: Vec<Duration> = (0..count).map(|_| connect_once(&to)).collect();
        spent.sort_unstable();
        let median = spent.get(spent.len() / 2).copied().unwrap_or_default();
        println!("{}", median.as_nanos() * u128::from(count));
    }
}

fn connect_once(to: &SockAddr) -> Duration {
    let mut socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    // A reset at the end, so that no port is kept waiting.
    socket.set_linger(Some(Duration::ZERO)).unwrap();
    let start = Instant::now();
    socket.connect(to).unwrap();
    let spent = start.elapsed();
    // Until the server has accepted and closed: its queue must not fill.
    assert_eq!(socket.read(&mut [0]).unwrap(), 0);
    spent
}

/// Removes the benchmark's cgroups, which are empty by then but for this process.
struct RemoveTree(PathBuf);

impl Drop for RemoveTree {
    fn drop(&mut self) {
        if let Some(mount) = self.0.parent() {
            fs::write(mount.join("cgroup.procs"), "0").ok();
        }
        for name in ["parent/one", "parent", "beside", "agent", ""] {
            fs::remove_dir(self.0.join(name)).ok();
        }
    }
}
