//! The Debians that tests boot, each made once with mmdebstrap from the machine's own package sources.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cmd;

const SUITE: &str = "bookworm";

/// What the container has beside Debian's essentials: systemd and what an ordinary host has, and clients.
const PACKAGES: &[&str] = &[
    "ca-certificates",
    "curl",
    "dbus",
    "iproute2",
    "kmod",
    "procps",
    "python3",
    "systemd",
    "systemd-sysv",
    "udev",
];

/// What a second one has beside these: the runtimes and clients of the README's table, and compilers for small ones.
const RUNTIMES: &[&str] = &[
    "bind9-dnsutils",
    "git",
    "golang-go",
    "libnss-resolve",
    "musl-tools",
    "node-eventsource",
    "nodejs",
    "npm",
    "openjdk-17-jdk-headless",
    "php-cli",
    "php-curl",
    "python3-aiohttp",
    "python3-grpcio",
    "python3-h2",
    "python3-httpx",
    "python3-pip",
    "python3-pycares",
    "python3-requests",
    "python3-websockets",
    "ruby",
    "ruby-grpc",
    "systemd-resolved",
    "wget",
];

/// What a third one has beside the first's: two container engines and what they need for networks.
const CONTAINERS: &[&str] = &["docker.io", "iptables", "netavark", "podman", "runc"];

/// Where the Debian is that most tests boot.
pub(super) fn debian() -> Result<PathBuf> {
    made(SUITE, PACKAGES)
}

/// Where the one with the runtimes is.
pub(super) fn runtimes(filter: Option<&str>) -> Result<Option<PathBuf>> {
    larger("runtimes", RUNTIMES, filter)
}

/// Where the one with podman and Docker is.
pub(super) fn containers(filter: Option<&str>) -> Result<Option<PathBuf>> {
    larger("containers", CONTAINERS, filter)
}

/// It takes long to make, so a `filter` that does not name the tests that need it, which have its name, does not have it
/// made; one that is there is used.
fn larger(name: &str, more: &[&str], filter: Option<&str>) -> Result<Option<PathBuf>> {
    let packages = [PACKAGES, more].concat();
    let wanted = filter.is_none_or(|filter| filter.contains(name));
    if wanted || is_made(&place(name), &packages) {
        return made(name, &packages).map(Some);
    }
    Ok(None)
}

fn place(name: &str) -> PathBuf {
    cmd::root().join("target/beds").join(name)
}

fn is_made(dir: &Path, packages: &[&str]) -> bool {
    fs::read_to_string(dir.with_extension("packages")).is_ok_and(|made| made == packages.join(","))
}

/// Makes it, if it isn't there or was made with other packages.
fn made(name: &str, packages: &[&str]) -> Result<PathBuf> {
    let dir = place(name);
    if is_made(&dir, packages) {
        return Ok(dir);
    }
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("can't remove {}", dir.display()))?;
    }
    fs::create_dir_all(&dir).with_context(|| format!("can't make {}", dir.display()))?;
    eprintln!(
        "test: making a Debian to boot with {} packages named, up to three minutes",
        packages.len()
    );
    // Without a sync for each of so many files: an interrupted one is made again anyway.
    let options = ["--quiet", "--variant=minbase", "--dpkgopt=force-unsafe-io"];
    let mut command = cmd::command("mmdebstrap", options);
    let list = packages.join(",");
    command
        .arg(format!("--include={list}"))
        .arg(SUITE)
        .arg(&dir)
        .args(sources());
    cmd::run(command).context("the Debian to boot")?;
    // Last: one that was interrupted is made again.
    let note = dir.with_extension("packages");
    fs::write(&note, list).with_context(|| format!("can't write {}", note.display()))?;
    Ok(dir)
}

/// The machine's own sources, so that a mirror which it is bound to is used here too; none means Debian's.
fn sources() -> Option<&'static Path> {
    let usual = ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"];
    usual.into_iter().map(Path::new).find(|file| file.is_file())
}
