//! Debian packages: only the missing ones, and never a daemon started by installing one.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::suite::Suite;
use crate::cmd;

/// invoke-rc.d and deb-systemd-invoke ask this file whether a service may be started (Debian Policy 9.3.3).
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// How long apt waits for another apt or dpkg that holds dpkg's lock, in seconds.
pub(super) const WAIT: &str = "--option=DPkg::Lock::Timeout=900";

/// How long to wait for one that holds the lists or the archives, for which apt itself does not, and how often to look.
const PATIENCE: Duration = Duration::from_mins(15);
const PAUSE: Duration = Duration::from_secs(5);

/// Installs those of `packages` that are not there.
pub(super) fn install(packages: &[&str]) -> Result<()> {
    let missing = missing(packages);
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("setup: missing packages: {}", missing.join(" "));
    if cmd::find("apt-get").is_none() {
        bail!(
            "this is no Debian (no apt-get); install what these packages hold: {}",
            missing.join(" ")
        );
    }
    if !cmd::is_root() {
        bail!(
            "installing needs root: apt-get install --no-install-recommends {}",
            missing.join(" ")
        );
    }
    if missing.iter().any(|package| !is_known(package)) {
        in_turn(|| apt(["update"]), PAUSE).context("the package lists")?;
    }
    let quiet = NoDaemons::new()?;
    let install = || {
        let mut install = apt(["install", "--yes", "--no-install-recommends"]);
        install.args(&missing);
        install
    };
    in_turn(install, PAUSE)?;
    drop(quiet);
    // Not started now; not at the next boot either. What was there before is left as it was.
    if missing.contains(&"nginx-light") && cmd::find("systemctl").is_some() {
        cmd::run(cmd::command("systemctl", ["disable", "nginx.service"]))
            .context("nginx would start at the next boot")?;
    }
    Ok(())
}

/// Installs a package from another suite, where it is not there; the machine's sources stay as they are.
pub(super) fn install_from(package: &str, suite: &str) -> Result<()> {
    if missing(&[package]).is_empty() {
        return Ok(());
    }
    eprintln!("setup: missing packages: {package}, from {suite}");
    if !cmd::is_root() {
        bail!("installing needs root: apt-get install --target-release {suite} {package}");
    }
    let suite = Suite::beside_own(suite)?;
    suite.update()?;
    let quiet = NoDaemons::new()?;
    in_turn(|| suite.install(package), PAUSE)?;
    drop(quiet);
    Ok(())
}

fn missing<'a>(packages: &[&'a str]) -> Vec<&'a str> {
    let format = "--showformat=${db:Status-Status} ${Package}\n";
    let mut query = cmd::command("dpkg-query", ["--show", format]);
    query.args(packages);
    // It fails when it does not know one of them, and lists the others all the same.
    let listed = query
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let installed = installed(&listed.unwrap_or_default());
    packages
        .iter()
        .copied()
        .filter(|package| !installed.contains(*package))
        .collect()
}

fn installed(listing: &str) -> BTreeSet<String> {
    listing
        .lines()
        .filter_map(|line| line.strip_prefix("installed "))
        .map(ToOwned::to_owned)
        .collect()
}

/// Whether apt's lists have a version of the package to install.
fn is_known(package: &str) -> bool {
    let policy = cmd::read(cmd::command("apt-cache", ["policy", package])).unwrap_or_default();
    policy
        .lines()
        .any(|line| line.trim().starts_with("Candidate:") && !line.contains("(none)"))
}

fn apt<const N: usize>(args: [&str; N]) -> Command {
    let mut command = cmd::command("apt-get", ["--quiet", WAIT]);
    command.args(args).env("DEBIAN_FRONTEND", "noninteractive");
    // What it says is read.
    command.env("LC_ALL", "C");
    command
}

/// Runs an apt as `cmd::run` does, again as long as another is at work: on a fresh host that is apt-daily.
fn in_turn(command: impl Fn() -> Command, pause: Duration) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let mut command = command();
        cmd::show(&command);
        command.stdout(io::stderr()).stderr(Stdio::piped());
        let output = command.spawn().and_then(std::process::Child::wait_with_output);
        let program = command.get_program().display();
        let output = output.with_context(|| format!("can't start {program}"))?;
        io::stderr().write_all(&output.stderr).ok();
        if output.status.success() {
            return Ok(());
        }
        let is_held = String::from_utf8_lossy(&output.stderr).contains("Could not get lock");
        if !is_held || Instant::now() >= end {
            bail!("{program} failed: {}", output.status);
        }
        thread::sleep(pause);
    }
}

/// For as long as it lives, no package starts a service. A policy that the host has already is left alone: then
/// it is the host's to say.
struct NoDaemons(Option<PathBuf>);

impl NoDaemons {
    fn new() -> Result<Self> {
        let path = Path::new(POLICY);
        if path.exists() {
            return Ok(Self(None));
        }
        fs::write(path, "#!/bin/sh\nexit 101\n").with_context(|| format!("can't write {POLICY}"))?;
        let guard = Self(Some(path.to_owned()));
        fs::set_permissions(path, Permissions::from_mode(0o755))
            .with_context(|| format!("can't chmod {POLICY}"))?;
        Ok(guard)
    }
}

impl Drop for NoDaemons {
    fn drop(&mut self) {
        if let Some(path) = self.0.take()
            && let Err(error) = fs::remove_file(&path)
        {
            eprintln!("setup: remove {} by hand: {error}", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_apt_that_finds_another_at_work_is_run_again() {
        let runs = std::cell::Cell::new(0);
        let says = |text: &'static str| {
            runs.set(0);
            let command = || {
                runs.set(runs.get() + 1);
                let script = format!("echo '{text}' >&2; exit {}", 100 * u8::from(runs.get() < 3));
                cmd::command("sh", ["-c", &script])
            };
            (in_turn(command, Duration::ZERO).is_ok(), runs.get())
        };
        assert_eq!(says("E: Could not get lock /var/lib/apt/lists/lock."), (true, 3));
        assert_eq!(says("E: Unable to locate package x"), (false, 1));
    }

    #[test]
    fn only_what_is_fully_installed_counts() {
        let listing = "installed curl\nnot-installed nginx-light\nconfig-files gcc\n";
        assert_eq!(installed(listing), BTreeSet::from(["curl".to_owned()]));
    }
}
