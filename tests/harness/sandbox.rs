//! The namespaces of one test: a network with a "host" and an "outside", and a view of the file system in which
//! `/etc/hosts`, `/etc/resolv.conf`, the trust bundle and a bpffs are the test's own.
//!
//! Two network namespaces joined by a veth pair, neither with a way to anywhere else: clients and agent live in
//! the first ([`HOST_V4`]), upstreams in the second, all at documentation addresses, so that even a test that
//! escaped would reach nobody; rules need `private = true` for them. Only the calling thread moves; the kernel takes the
//! namespaces down when the last process in them is gone, so a killed test leaves none either.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// The address of clients and agent (TEST-NET-3, RFC 5737).
pub const HOST_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// The same, IPv6 (documentation prefix, RFC 3849).
pub const HOST_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 1);

const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The calling thread's stay in namespaces of its own. Dropping it undoes the mounts and takes the thread back.
#[derive(Debug)]
pub struct Sandbox {
    home: Home,
    dir: PathBuf,
    hosts: String,
    mounts: Vec<PathBuf>,
    outside: PathBuf,
    rooms: u8,
}

/// A network namespace beside the host's.
#[derive(Clone, Debug)]
pub struct Room {
    /// The file that stands for it.
    pub file: PathBuf,
    /// Its device's other end, outside: gone when the namespace is.
    pub device: String,
    /// Its address.
    pub v4: Ipv4Addr,
    /// Its address.
    pub v6: Ipv6Addr,
}

/// Where the thread came from.
#[derive(Debug)]
struct Home {
    net: File,
    mnt: File,
}

impl Sandbox {
    /// Moves the calling thread into new namespaces; `dir` holds the files that are bound over the host's.
    ///
    /// # Errors
    /// If a namespace, address or mount can't be made (that needs root).
    pub fn enter(dir: &Path) -> Result<Self> {
        let home = Home {
            net: open_ns("net")?,
            mnt: open_ns("mnt")?,
        };
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
            .context("can't make namespaces (that needs root)")?;
        let outside = dir.join("outside.netns");
        let mut sandbox = Self {
            home,
            dir: dir.to_owned(),
            hosts: String::new(),
            mounts: Vec::new(),
            outside,
            rooms: 0,
        };
        // Else our mounts would spread to the host.
        mount(
            None::<&str>,
            "/",
            None::<&str>,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            None::<&str>,
        )
        .context("can't make the mounts private")?;
        sandbox.connect_outside()?;
        sandbox.set_names()?;
        Ok(sandbox)
    }

    /// The file that stands for the network namespace of the upstreams.
    #[must_use]
    pub fn outside(&self) -> &Path {
        &self.outside
    }

    /// Gives the outside one more pair of addresses, the `n`th: `203.0.113.(10+n)` and `2001:db8:113::(10+n)`.
    ///
    /// # Errors
    /// If `ip` refuses.
    pub fn outside_address(&self, n: u8) -> Result<(Ipv4Addr, Ipv6Addr)> {
        let last = 10 + n;
        let v4 = Ipv4Addr::new(203, 0, 113, last);
        let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, last.into());
        let batch = format!("addr add {v4}/24 dev out0\naddr add {v6}/64 dev out0 nodad\n");
        ip(Some(&self.outside), &batch)?;
        Ok((v4, v6))
    }

    /// Binds a UDP socket outside, to see whether a packet gets there. Non-blocking.
    ///
    /// # Errors
    /// If it can't be bound.
    pub fn outside_udp(&self, address: SocketAddr) -> Result<UdpSocket> {
        let netns = File::open(&self.outside).context("can't open the outside namespace")?;
        // A socket stays in the namespace that its maker was in; the maker may leave.
        let bound = thread::spawn(move || -> Result<UdpSocket> {
            setns(&netns, CloneFlags::CLONE_NEWNET).context("can't enter the outside namespace")?;
            let socket = UdpSocket::bind(address).with_context(|| format!("can't bind {address}"))?;
            socket
                .set_nonblocking(true)
                .context("can't make the socket non-blocking")?;
            Ok(socket)
        });
        bound
            .join()
            .map_err(|_panic| anyhow!("the thread that binds a socket outside panicked"))?
    }

    /// Lets `name` be found at these addresses, in the sandbox's own `/etc/hosts`.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn add_host(&mut self, name: &str, v4: Ipv4Addr, v6: Ipv6Addr) -> Result<()> {
        writeln!(self.hosts, "{v4} {name}\n{v6} {name}")?;
        // In place: the bind mount holds on to the inode.
        fs::write(self.dir.join("hosts"), &self.hosts).context("can't write the sandbox's hosts file")
    }

    /// Makes every process of the sandbox trust this authority besides the host's own roots.
    ///
    /// # Errors
    /// If the bundle can't be written or bound.
    pub fn trust(&mut self, authority: &Path) -> Result<()> {
        let mut bundle = fs::read(BUNDLE).with_context(|| format!("can't read {BUNDLE}"))?;
        bundle.extend(fs::read(authority).context("can't read the test CA")?);
        let merged = self.dir.join("ca-certificates.crt");
        fs::write(&merged, bundle).context("can't write the sandbox's trust bundle")?;
        self.bind(&merged, Path::new(BUNDLE))
    }

    /// A file system of this size at `dir`, to be filled.
    ///
    /// # Errors
    /// If it can't be mounted.
    pub fn mount_disk(&mut self, dir: &Path, bytes: usize) -> Result<()> {
        let options = format!("size={bytes}");
        mount(
            Some("disk"),
            dir,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .context("can't mount a tmpfs")?;
        self.mounts.push(dir.to_owned());
        Ok(())
    }

    /// Mounts a BPF file system at `dir`; its pins go with it.
    ///
    /// # Errors
    /// If it can't be mounted.
    pub fn mount_bpffs(&mut self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir).context("can't make the bpffs directory")?;
        mount(Some("bpf"), dir, Some("bpf"), MsFlags::empty(), None::<&str>)
            .context("can't mount a bpffs")?;
        self.mounts.push(dir.to_owned());
        Ok(())
    }

    /// Makes another network namespace with a way of its own to the outside, and the file that stands for it. The `n`th
    /// room's address is `198.51.100.(4n+2)`, and `2001:db8:100:n::2`; its device outside is called `roomN`.
    ///
    /// # Errors
    /// If it can't be made.
    pub fn add_room(&mut self) -> Result<Room> {
        let n = self.rooms;
        self.rooms += 1;
        let file = self.dir.join(format!("room{n}.netns"));
        self.add_netns(&file)?;
        let (outer, inner) = (4 * n + 1, 4 * n + 2);
        let (shown, outside) = (file.display(), self.outside.clone());
        ip(
            Some(&outside),
            &format!(
                "link add room{n} type veth peer name eth0 netns {shown}\n\
                 addr add 198.51.100.{outer}/30 dev room{n}\naddr add 2001:db8:100:{n}::1/64 dev room{n} nodad\n\
                 link set room{n} up\n"
            ),
        )?;
        ip(
            Some(&file),
            &format!(
                "link set lo up\naddr add 198.51.100.{inner}/30 dev eth0\n\
                 addr add 2001:db8:100:{n}::2/64 dev eth0 nodad\nlink set eth0 up\n\
                 route add default via 198.51.100.{outer}\nroute add ::/0 via 2001:db8:100:{n}::1\n"
            ),
        )?;
        Ok(Room {
            file,
            device: format!("room{n}"),
            v4: Ipv4Addr::new(198, 51, 100, inner),
            v6: Ipv6Addr::new(0x2001, 0xdb8, 0x100, n.into(), 0, 0, 0, 2),
        })
    }

    /// Lets go of a room; it is no more when nobody else holds it.
    ///
    /// # Errors
    /// If it can't be unmounted.
    pub fn drop_room(&mut self, room: &Room) -> Result<()> {
        self.mounts.retain(|target| *target != room.file);
        umount2(&room.file, MntFlags::MNT_DETACH).context("can't let go of a namespace")
    }

    /// Whether a device of this name is outside.
    ///
    /// # Errors
    /// If `ip` can't be run.
    pub fn has_outside(&self, device: &str) -> Result<bool> {
        let listed = Command::new("nsenter")
            .arg(format!("--net={}", self.outside.display()))
            .args(["ip", "-o", "link", "show"])
            .output()
            .context("can't start ip")?;
        Ok(String::from_utf8_lossy(&listed.stdout).contains(&format!(" {device}@")))
    }

    fn add_netns(&mut self, file: &Path) -> Result<()> {
        File::create(file).context("can't make the namespace's file")?;
        let target = file.to_owned();
        let made = thread::spawn(move || -> Result<()> {
            unshare(CloneFlags::CLONE_NEWNET).context("can't make a network namespace")?;
            let own = "/proc/thread-self/ns/net";
            mount(Some(own), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .context("can't keep a network namespace")
        });
        made.join()
            .map_err(|_panic| anyhow!("the thread that makes a network namespace panicked"))??;
        self.mounts.push(file.to_owned());
        Ok(())
    }

    fn connect_outside(&mut self) -> Result<()> {
        let file = self.outside.clone();
        self.add_netns(&file)?;
        let outside = self.outside.display();
        let here = format!(
            "link set lo up\nlink add in0 type veth peer name out0 netns {outside}\n\
             addr add {HOST_V4}/24 dev in0\naddr add {HOST_V6}/64 dev in0 nodad\nlink set in0 up\n"
        );
        ip(None, &here)?;
        ip(Some(&self.outside), "link set lo up\nlink set out0 up\n")
    }

    fn set_names(&mut self) -> Result<()> {
        self.hosts = "127.0.0.1 localhost\n::1 localhost\n".to_owned();
        let hosts = self.dir.join("hosts");
        fs::write(&hosts, &self.hosts).context("can't write the sandbox's hosts file")?;
        self.bind(&hosts, Path::new("/etc/hosts"))?;
        // Nothing answers there: a name that is not in the hosts file does not resolve.
        let resolv = self.dir.join("resolv.conf");
        fs::write(&resolv, "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
            .context("can't write the sandbox's resolv.conf")?;
        match fs::canonicalize("/etc/resolv.conf") {
            Ok(target) => self.bind(&resolv, &target),
            // A host without one: nothing to hide.
            Err(_) => Ok(()),
        }
    }

    fn bind(&mut self, from: &Path, over: &Path) -> Result<()> {
        mount(Some(from), over, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .with_context(|| format!("can't bind {} over {}", from.display(), over.display()))?;
        self.mounts.push(over.to_owned());
        Ok(())
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        for target in self.mounts.drain(..).rev() {
            report("unmount", umount2(&target, MntFlags::MNT_DETACH));
        }
        report(
            "return to the network namespace",
            setns(&self.home.net, CloneFlags::CLONE_NEWNET),
        );
        report(
            "return to the mount namespace",
            setns(&self.home.mnt, CloneFlags::CLONE_NEWNS),
        );
    }
}

fn open_ns(kind: &str) -> Result<File> {
    let path = format!("/proc/thread-self/ns/{kind}");
    File::open(&path).with_context(|| format!("can't open {path}"))
}

/// Runs a batch of ip(8) commands, in another namespace if one is given.
fn ip(netns: Option<&Path>, batch: &str) -> Result<()> {
    let mut command = match netns {
        Some(file) => {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net={}", file.display())).arg("ip");
            command
        }
        None => Command::new("ip"),
    };
    command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().context("can't start ip (package iproute2)")?;
    let mut input = child.stdin.take().context("ip has no standard input")?;
    input.write_all(batch.as_bytes()).context("can't write to ip")?;
    drop(input);
    let output = child.wait_with_output().context("can't wait for ip")?;
    if !output.status.success() {
        bail!("ip refused:\n{batch}{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

#[expect(
    clippy::print_stderr,
    reason = "a Drop has no other way to say what was left behind"
)]
fn report(what: &str, outcome: nix::Result<()>) {
    if let Err(error) = outcome {
        eprintln!("sandbox: can't {what}: {error}");
    }
}
