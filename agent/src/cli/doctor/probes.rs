//! The checks that need nothing but to look: kernel, rights, cgroups, bpffs, BTF, lockdown, clock, swap.

use std::fs;
use std::io;
use std::path::Path;

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::{Check, clock};
use crate::ebpf::features;
use crate::enroll::{Layout, Mount};
use crate::identity::process::in_initial_pid_namespace;
use crate::supervisor::ground;

/// All of them, in the order in which one would mend things.
#[must_use]
pub fn host_checks(bpffs_dir: &Path) -> Vec<Check> {
    vec![
        kernel(),
        privileges(),
        cgroups(),
        bpffs(bpffs_dir),
        btf(),
        lockdown(),
        pid_namespace(),
        clock::check(),
        swap(),
    ]
}

fn kernel() -> Check {
    const NAME: &str = "kernel";
    let release = match nix::sys::utsname::uname() {
        Ok(names) => names.release().to_string_lossy().into_owned(),
        Err(errno) => return Check::fail(NAME, format!("uname: {errno}"), "run on Linux 6.1 or later"),
    };
    let oldest = features::TESTED_KERNELS.first().and_then(|name| version(name));
    match version(&release) {
        Some(found) if Some(found) >= oldest => Check::pass(NAME, format!("Linux {release}")),
        Some(_) => Check::warn(
            NAME,
            format!("Linux {release} is older than any that is tested"),
            "use Linux 6.1 or later",
        ),
        None => Check::warn(
            NAME,
            format!("Linux {release:?} has no known form"),
            "use Linux 6.1 or later",
        ),
    }
}

/// "6.12.3-cloud" -> (6, 12).
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn privileges() -> Check {
    const NAME: &str = "privileges";
    match ground::missing() {
        None => Check::pass(NAME, "all capabilities that the supervisor needs"),
        Some(missing) => Check::fail(
            NAME,
            format!("missing: {missing}"),
            "run as root, or as callgate.service",
        ),
    }
}

fn cgroups() -> Check {
    const NAME: &str = "cgroup v2";
    match Mount::find() {
        Ok(mount) => {
            let place = mount.path().display();
            let layout = match mount.layout() {
                Layout::Unified => "unified",
                Layout::Hybrid => "hybrid, v1 controllers beside it",
            };
            let writable = nix::unistd::access(mount.path(), nix::unistd::AccessFlags::W_OK).is_ok();
            if writable {
                Check::pass(NAME, format!("{place} ({layout})"))
            } else {
                Check::fail(
                    NAME,
                    format!("{place} ({layout}) can't be written"),
                    "run as root, with the file system mounted read-write",
                )
            }
        }
        Err(error) => Check::fail(
            NAME,
            error.to_string(),
            "mount it: mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified",
        ),
    }
}

/// The agent mounts one itself where its pins are to go; one that is there for all outlives a private mount.
fn bpffs(dir: &Path) -> Check {
    const NAME: &str = "bpffs";
    // What may not be looked into is taken for what lies above it.
    let is_there = |part: &&Path| match part.try_exists() {
        Ok(there) => there,
        Err(error) => error.kind() != io::ErrorKind::PermissionDenied,
    };
    let on = dir.ancestors().find(is_there).unwrap_or(dir);
    match statfs(on) {
        Ok(found) if found.filesystem_type() == BPF_FS_MAGIC => {
            Check::pass(NAME, format!("{} (for {})", on.display(), dir.display()))
        }
        Ok(_) => Check::warn(
            NAME,
            format!("{} lies on none; the agent will mount one", dir.display()),
            "mount it for all: mount -t bpf bpf /sys/fs/bpf",
        ),
        Err(errno) => Check::fail(
            NAME,
            format!("{}: {errno}", on.display()),
            "see why it can't be looked at, or set `bpffs_dir`",
        ),
    }
}

fn btf() -> Check {
    const NAME: &str = "kernel types";
    const FILE: &str = "/sys/kernel/btf/vmlinux";
    match fs::File::open(FILE) {
        Ok(_) => Check::pass(NAME, FILE),
        Err(error) => Check::fail(
            NAME,
            format!("{FILE}: {error}"),
            "use a kernel built with CONFIG_DEBUG_INFO_BTF=y (all of Debian's, Ubuntu's and Fedora's are)",
        ),
    }
}

/// Reading kernel memory from a program is what "confidentiality" forbids.
fn lockdown() -> Check {
    const NAME: &str = "lockdown";
    let text = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    let mode = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    match mode.map(|(mode, _)| mode) {
        Some("confidentiality") => Check::fail(
            NAME,
            "confidentiality: programs may not read who is calling",
            "boot with lockdown=integrity",
        ),
        Some(mode) => Check::pass(NAME, mode),
        None => Check::pass(NAME, "not in this kernel"),
    }
}

fn pid_namespace() -> Check {
    const NAME: &str = "pid namespace";
    if in_initial_pid_namespace() {
        Check::pass(NAME, "the host's")
    } else {
        Check::warn(
            NAME,
            "not the host's: of callers outside it neither process nor executable is known, rules with `exe` deny them",
            "run the agent on the host, or in a container with --pid=host",
        )
    }
}

/// The agent forbids cores of itself; pages that are swapped out could still hold a secret.
fn swap() -> Check {
    const NAME: &str = "swap";
    let swaps = fs::read_to_string(Path::new("/proc/swaps")).unwrap_or_default();
    // The first line is a heading.
    if swaps.lines().count() <= 1 {
        Check::pass(NAME, "none")
    } else {
        Check::warn(
            NAME,
            "on: credentials in memory may be written to disk",
            "encrypt the swap device, or switch swap off",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn pins_that_would_lie_on_no_bpf_file_system_are_told_of() {
        let elsewhere = tempfile::tempdir().unwrap();
        let check = bpffs(&elsewhere.path().join("below/callgate"));
        assert_eq!(check.status, Status::Warn);
        assert!(check.found.contains("lies on none"), "{check:?}");
    }

    #[test]
    fn pins_whose_place_can_not_be_looked_at_fail_with_the_reason() {
        let elsewhere = tempfile::tempdir().unwrap();
        let file = elsewhere.path().join("file");
        fs::write(&file, "").unwrap();
        let check = bpffs(&file.join("callgate"));
        assert_eq!(check.status, Status::Fail, "{check:?}");
        assert!(check.found.contains("ENOTDIR"), "{check:?}");
        assert!(check.fix.contains("bpffs_dir"), "{check:?}");
    }

    #[test]
    fn versions_are_read_from_releases_of_all_kinds() {
        assert_eq!(version("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(version("7.3.4+deb14-amd64"), Some((7, 3)));
        assert_eq!(version("6.1"), Some((6, 1)));
        assert_eq!(version("next"), None);
        assert_eq!(version(features::TESTED_KERNELS[0]), Some((6, 1)));
    }
}
