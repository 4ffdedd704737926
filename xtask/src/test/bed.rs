//! The Debian that tests boot, made once with mmdebstrap from the machine's own package sources.

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
    "python3-minimal",
    "systemd",
    "systemd-sysv",
    "udev",
];

/// Where the Debian is; made if it isn't there, or was made with other packages.
pub(super) fn debian() -> Result<PathBuf> {
    let dir = cmd::root().join("target/beds").join(SUITE);
    let list = dir.with_extension("packages");
    let packages = PACKAGES.join(",");
    if fs::read_to_string(&list).is_ok_and(|made| made == packages) {
        return Ok(dir);
    }
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("can't remove {}", dir.display()))?;
    }
    fs::create_dir_all(&dir).with_context(|| format!("can't make {}", dir.display()))?;
    eprintln!("test: making a Debian to boot, under a minute");
    let mut command = cmd::command("mmdebstrap", ["--quiet", "--variant=minbase"]);
    command
        .arg(format!("--include={packages}"))
        .arg(SUITE)
        .arg(&dir)
        .args(sources());
    cmd::run(command).context("the Debian to boot")?;
    // Last: one that was interrupted is made again.
    fs::write(&list, packages).with_context(|| format!("can't write {}", list.display()))?;
    Ok(dir)
}

/// The machine's own sources, so that a mirror which it is bound to is used here too; none means Debian's.
fn sources() -> Option<&'static Path> {
    let usual = ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"];
    usual.into_iter().map(Path::new).find(|file| file.is_file())
}
