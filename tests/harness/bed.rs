//! A booted Debian with systemd in a container (systemd-nspawn), on the network of a [`World`], with the package
//! installed as an operator would.
//!
//! Its root is an overlay over a Debian that `cargo xtask test` made once, mounted in the world's own mount namespace,
//! so nothing of it stays. It sees cgroup v2 only, unless a test wants it otherwise, and its own part of it alone.

mod made;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::audit::{self, Expected, Record};
use crate::launch::{self, Output};
use crate::world::World;
use crate::{cgroup, note, wait};

/// The variable that names the directory with the Debian to boot.
pub const ROOT_VARIABLE: &str = "CALLGATE_BED";
/// The variable that names the one that has the runtimes of the README's table.
pub const RUNTIMES_VARIABLE: &str = "CALLGATE_BED_RUNTIMES";
/// The variable that names the one that has podman and Docker.
pub const CONTAINERS_VARIABLE: &str = "CALLGATE_BED_CONTAINERS";
/// The variable that names the package under test.
pub const PACKAGE_VARIABLE: &str = "CALLGATE_DEB";

/// The variable that names the package to upgrade to.
pub const NEXT_VARIABLE: &str = "CALLGATE_DEB_NEXT";

/// It takes a second on a quiet machine.
const BOOT_LIMIT: Duration = Duration::from_secs(60);
/// The code by which systemd-nspawn, where it is not to do so itself, asks to be started again (systemd's
/// `EXIT_FORCE_RESTART`, src/basic/exit-status.h).
const REBOOTED: i32 = 133;
/// Where the records are, as the package's settings say.
const AUDIT_FILE: &str = "var/log/callgate/audit.jsonl";
/// What commands inside find.
const ENVIRONMENT: &[(&str, &str)] = &[
    (
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ),
    ("HOME", "/root"),
    ("LANG", "C.UTF-8"),
    ("DEBIAN_FRONTEND", "noninteractive"),
];

/// Which cgroups the container sees.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Layout {
    /// Of version 2 alone.
    Unified,
    /// What the machine has.
    Hybrid,
}

/// A running container. Dropping it ends all in it; its world goes after it.
#[derive(Debug)]
pub struct Bed {
    console: PathBuf,
    root: PathBuf,
    leader: u32,
    container: Child,
    group: PathBuf,
    layout: Layout,
    world: World,
}

impl Bed {
    /// Boots a Debian on the network of `world`; the package is not in it yet. Upstreams that the world has, or gets
    /// later, are known there by name and trusted.
    ///
    /// # Errors
    /// If it does not come up, with what its console says.
    pub fn boot(world: World) -> Result<Self> {
        Self::boot_from(ROOT_VARIABLE, world, Layout::Unified)
    }

    fn boot_from(variable: &str, world: World, layout: Layout) -> Result<Self> {
        note::leave(note::BOOTS_VARIABLE, &note::test())?;
        let root = made::overlay(&world, &named(variable)?)?;
        made::prepare(&world, &root)?;
        let console = world.dir().join("console.log");
        let group = world.cgroup().join("bed");
        fs::create_dir(&group).context("can't make the bed's cgroup")?;
        let container = made::start(&world, &root, &group, &console, layout)?;
        let mut bed = Self {
            console,
            root,
            leader: 0,
            container,
            group,
            layout,
            world,
        };
        bed.wait_until_up()
            .and_then(|()| bed.all_runs())
            .with_context(|| format!("the console:\n{}", bed.console()))?;
        Ok(bed)
    }

    /// Reboots it, as systemd does when told: nothing that is not on disk outlives that, pins and cgroups neither. Units
    /// may fail to start.
    ///
    /// # Errors
    /// If it does not go down, or does not come up again.
    pub fn reboot(&mut self) -> Result<()> {
        self.systemctl(&["reboot"])?.ok()?;
        let ended = launch::wait_for(&mut self.container, BOOT_LIMIT).context("it does not go down")?;
        if ended.code() != Some(REBOOTED) {
            bail!("systemd-nspawn ended: {ended}; the console:\n{}", self.console());
        }
        cgroup::remove(&self.cgroup());
        for entry in fs::read_dir(self.world.dir().join("bpf")).context("no BPF file system")? {
            let pins = entry.context("can't list the pins")?.path();
            // The files there are the file system's own.
            if pins.is_dir() {
                fs::remove_dir_all(&pins).with_context(|| format!("can't remove {}", pins.display()))?;
            }
        }
        self.container = made::start(&self.world, &self.root, &self.group, &self.console, self.layout)?;
        self.wait_until_up()
            .with_context(|| format!("the console:\n{}", self.console()))
    }

    /// Boots one and installs the package, which starts the agent without a policy.
    ///
    /// # Errors
    /// If either fails.
    pub fn installed(world: World) -> Result<Self> {
        let bed = Self::boot(world)?;
        bed.install(&package()?)?;
        Ok(bed)
    }

    /// As [`Bed::installed`], one that has cgroups of version 1 beside those of version 2, as its machine has.
    ///
    /// # Errors
    /// If either fails, or the machine has none of version 1.
    pub fn hybrid(world: World) -> Result<Self> {
        let bed = Self::boot_from(ROOT_VARIABLE, world, Layout::Hybrid)?;
        bed.install(&package()?)?;
        Ok(bed)
    }

    /// As [`Bed::installed`], one that has many runtimes.
    ///
    /// # Errors
    /// If either fails.
    pub fn with_runtimes(world: World) -> Result<Self> {
        let bed = Self::boot_from(RUNTIMES_VARIABLE, world, Layout::Unified)?;
        bed.install(&package()?)?;
        Ok(bed)
    }

    /// As [`Bed::installed`], one that has podman and Docker.
    ///
    /// # Errors
    /// If either fails.
    pub fn with_containers(world: World) -> Result<Self> {
        let bed = Self::boot_from(CONTAINERS_VARIABLE, world, Layout::Unified)?;
        bed.install(&package()?)?;
        Ok(bed)
    }

    /// Installs a package, or upgrades to it.
    ///
    /// # Errors
    /// If dpkg refuses.
    pub fn install(&self, package: &Path) -> Result<()> {
        let name = package.file_name().context("a package's file name")?;
        let inside = Path::new("/var/cache").join(name);
        fs::copy(package, self.path(&inside)).context("can't copy the package in")?;
        let options = ["--force-confnew", "--install"].map(OsStr::new);
        self.run(
            ["dpkg".as_ref()]
                .into_iter()
                .chain(options)
                .chain([inside.as_os_str()]),
        )?
        .ok()
        .context("dpkg")?;
        fs::remove_file(self.path(&inside)).context("can't remove the package's copy")
    }

    /// Writes a policy and has the agent take it.
    ///
    /// # Errors
    /// If the agent refuses it.
    pub fn policy(&self, text: &str) -> Result<()> {
        self.write("/etc/callgate/policy.d/test.toml", text)?;
        self.run(["callgate", "reload"])?
            .ok()
            .context("callgate reload")?;
        Ok(())
    }

    /// Writes a file, 0644.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        let path = self.path(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| format!("can't make {}", parent.display()))?;
        }
        fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))
    }

    /// Writes a secret as only root may read it.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn secret(&self, name: &str, value: &str) -> Result<()> {
        let script = r#"umask 077; printf %s "$1" > "/etc/callgate/secrets/$0""#;
        self.run(["sh", "-c", script, name, value])?.ok()?;
        Ok(())
    }

    /// Writes a unit, tells systemd, and gives back the unit's name.
    ///
    /// # Errors
    /// If it can't be written or loaded.
    pub fn unit(&self, name: &str, text: &str) -> Result<()> {
        self.write(&format!("/etc/systemd/system/{name}"), text)?;
        self.systemctl(&["daemon-reload"])?.ok()?;
        Ok(())
    }

    /// systemctl(1) with these arguments.
    ///
    /// # Errors
    /// If it can't be started or takes too long; not if it fails.
    pub fn systemctl(&self, args: &[&str]) -> Result<Output> {
        self.run(["systemctl"].iter().chain(args))
    }

    /// A property of a unit.
    ///
    /// # Errors
    /// If systemd can't say.
    pub fn property(&self, unit: &str, name: &str) -> Result<String> {
        let text = self
            .systemctl(&["show", "--value", "--property", name, unit])?
            .ok()?;
        Ok(text.trim_end().to_owned())
    }

    /// What the journal has of a unit.
    ///
    /// # Errors
    /// If it can't be read.
    pub fn journal(&self, unit: &str) -> Result<String> {
        self.run(["journalctl", "--no-pager", "--output=cat", "--unit", unit])?
            .ok()
    }

    /// The command that runs `args` inside, as root and outside every unit, for tests that feed it or let it run on.
    #[must_use]
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={}", self.leader))
            .args([
                "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd", "--",
            ])
            .args(args)
            .env_clear()
            .envs(ENVIRONMENT.iter().copied())
            .stdin(Stdio::null());
        command
    }

    /// Runs `args` inside to its end.
    ///
    /// # Errors
    /// If it can't be started or takes too long; not if it fails.
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<Output> {
        launch::finish(self.command(args))
    }

    /// Runs a shell script inside to its end.
    ///
    /// # Errors
    /// If it can't be started or takes too long; not if it fails.
    pub fn sh(&self, script: &str) -> Result<Output> {
        self.run(["sh", "-c", script])
    }

    /// Whether there is such a file inside.
    ///
    /// # Errors
    /// If nobody can look.
    pub fn exists(&self, path: &str) -> Result<bool> {
        Ok(self.run(["test", "-e", path])?.code() == Some(0))
    }

    /// Where a file of the container's root file system is outside of it. `/run` and `/tmp` are others.
    #[must_use]
    pub fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        let inside = inside.as_ref();
        self.root.join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// The world that it stands in: its upstreams, its outside.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }

    /// As [`Bed::world`], to give it another upstream.
    pub fn world_mut(&mut self) -> &mut World {
        &mut self.world
    }

    /// The cgroup directory, outside, that is the container's root.
    #[must_use]
    pub fn cgroup(&self) -> PathBuf {
        self.group.join("payload")
    }

    /// All that its console showed.
    #[must_use]
    pub fn console(&self) -> String {
        fs::read_to_string(&self.console).unwrap_or_default()
    }

    /// All audit records so far.
    ///
    /// # Errors
    /// If the file can't be read or holds something else.
    pub fn records(&self) -> Result<Vec<Record>> {
        audit::read(&self.path(AUDIT_FILE))
    }

    /// Waits until there is exactly one record with these fields. See [`crate::assert_record!`].
    ///
    /// # Errors
    /// If there is none in time, with the closest misses; or if there are several.
    pub fn expect_record(&self, expected: &[Expected<'_>]) -> Result<Record> {
        audit::expect(|| self.records(), expected)
    }

    fn wait_until_up(&mut self) -> Result<()> {
        let procs = self.cgroup().join("init.scope/cgroup.procs");
        let container = &mut self.container;
        self.leader = wait::until("the container's first process", BOOT_LIMIT, || {
            if let Ok(Some(status)) = container.try_wait() {
                return Some(Err(anyhow::anyhow!("systemd-nspawn ended: {status}")));
            }
            let pids = fs::read_to_string(&procs).ok()?;
            pids.lines().next()?.parse().ok().map(Ok)
        })??;
        let mut state = String::new();
        let up = wait::until("systemd is up", BOOT_LIMIT, || {
            let output = self.systemctl(&["is-system-running"]).ok()?;
            state = output.stdout;
            matches!(state.trim(), "running" | "degraded").then_some(())
        });
        up.with_context(|| format!("its state is {state:?}"))
    }

    fn all_runs(&self) -> Result<()> {
        let failed = self.systemctl(&["--failed", "--no-legend"])?.stdout;
        if !failed.is_empty() {
            bail!("units failed at boot:\n{failed}");
        }
        Ok(())
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        // With its namespace's first process all others in it end.
        cgroup::kill_all(&self.group);
        drop(launch::wait_for(&mut self.container, wait::PATIENCE));
        made::remove_version_1(&self.group);
    }
}

/// The package under test.
///
/// # Errors
/// If `CALLGATE_DEB` does not name a file.
pub fn package() -> Result<PathBuf> {
    named(PACKAGE_VARIABLE)
}

/// The package to upgrade to: the same, of a higher version.
///
/// # Errors
/// If `CALLGATE_DEB_NEXT` does not name a file.
pub fn next_package() -> Result<PathBuf> {
    named(NEXT_VARIABLE)
}

fn named(variable: &str) -> Result<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from);
    let path = path.with_context(|| format!("{variable} is not set; run `cargo xtask test`"))?;
    if !path.exists() {
        bail!("{variable}={} is not there", path.display());
    }
    Ok(path)
}
