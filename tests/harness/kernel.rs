//! What a test needs of the machine, and what happens where it is missing: the test says so and is counted as
//! skipped, and where `CALLGATE_TEST_STRICT=1` (CI) it fails unless the skip is in [`EXPECTED_SKIPS`].

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::{agent, bed, cgroup, note};

/// Something that not every machine has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Feature {
    /// Root, with the right to make namespaces and mounts.
    Root,
    /// A cgroup v2 mount.
    CgroupV2,
    /// Cgroups of version 1 beside it, with systemd's own tree among them.
    HybridCgroups,
    /// A kernel with its own type information, which the agent's programs need.
    Btf,
    /// The agent's binary, named by `CALLGATE_BIN`.
    Agent,
    /// strace(1), which can make system calls fail; under ptrace restrictions it can't.
    Strace,
    /// io_uring, which some kernels and sandboxes switch off.
    IoUring,
    /// A Debian to boot, named by `CALLGATE_BED`, and the package to install in it, named by `CALLGATE_DEB`.
    Bed,
    /// One that has many runtimes, named by `CALLGATE_BED_RUNTIMES`.
    Runtimes,
    /// One that has podman and Docker, named by `CALLGATE_BED_CONTAINERS`.
    Containers,
    /// A file that says which process id comes next (CONFIG_CHECKPOINT_RESTORE).
    NextPid,
}

/// What CI's machine is known to lack; a skip for anything else fails there.
pub const EXPECTED_SKIPS: &[Feature] = &[];

impl Feature {
    /// Why the machine does not have it; `None` if it does.
    #[must_use]
    pub fn missing(self) -> Option<String> {
        match self {
            Self::Root => {
                let uid = fs::metadata("/proc/thread-self").map_or(u32::MAX, |meta| meta.uid());
                (uid != 0).then(|| "needs root".to_owned())
            }
            Self::CgroupV2 => cgroup::mount_point().err().map(|error| error.to_string()),
            Self::HybridCgroups => cgroup::version_1_mount()
                .is_none()
                .then(|| "needs a hybrid layout (boot with systemd.unified_cgroup_hierarchy=0)".to_owned()),
            Self::Btf => {
                let file = "/sys/kernel/btf/vmlinux";
                (!Path::new(file).exists()).then(|| format!("the kernel has no {file}"))
            }
            // One that is named but is not there is a mistake, and fails the test that starts it.
            Self::Agent => std::env::var_os(agent::BINARY_VARIABLE)
                .is_none()
                .then(|| format!("{} is not set; run `cargo xtask test`", agent::BINARY_VARIABLE)),
            Self::Strace => {
                let works = Command::new("strace")
                    .args(["-qq", "-o", "/dev/null", "true"])
                    .status();
                (!works.is_ok_and(|status| status.success())).then(|| "strace does not work here".to_owned())
            }
            Self::Bed => [bed::ROOT_VARIABLE, bed::PACKAGE_VARIABLE]
                .into_iter()
                .find(|variable| std::env::var_os(variable).is_none())
                .map(|variable| format!("{variable} is not set; run `cargo xtask test`")),
            Self::Runtimes => larger(bed::RUNTIMES_VARIABLE, "runtimes"),
            Self::Containers => larger(bed::CONTAINERS_VARIABLE, "containers"),
            Self::NextPid => {
                let file = "/proc/sys/kernel/ns_last_pid";
                (!Path::new(file).exists()).then(|| format!("the kernel has no {file}"))
            }
            Self::IoUring => {
                let off = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
                (off.trim() == "2").then(|| "io_uring is switched off (kernel.io_uring_disabled)".to_owned())
            }
        }
    }
}

/// Why there is no Debian of those that not every run of the tests makes.
fn larger(variable: &str, filter: &str) -> Option<String> {
    std::env::var_os(variable)
        .is_none()
        .then(|| format!("{variable} is not set; run `cargo xtask test --filter {filter}`"))
}

/// Ends the test as skipped where one of the features is missing: `require!(Root, Agent)`, first line of a test
/// that returns `anyhow::Result<()>`.
#[macro_export]
macro_rules! require {
    ($($feature:ident),+ $(,)?) => {
        if $crate::kernel::skip(&[$($crate::Feature::$feature),+])? {
            return Ok(());
        }
    };
}

/// Whether to skip; notes the skip in the file that `CALLGATE_SKIP_FILE` names, which the test runner counts.
///
/// # Errors
/// In strict mode, if the skip is not an expected one.
pub fn skip(needed: &[Feature]) -> Result<bool> {
    let Some((feature, reason)) = needed.iter().find_map(|f| f.missing().map(|reason| (*f, reason))) else {
        return Ok(false);
    };
    let strict = std::env::var_os("CALLGATE_TEST_STRICT").is_some_and(|value| value == "1");
    if strict && !EXPECTED_SKIPS.contains(&feature) {
        bail!("skipped for {feature:?} ({reason}), which is not in the table of expected skips");
    }
    let test = note::test();
    note::leave(note::SKIPS_VARIABLE, &format!("{test}: {reason}"))?;
    #[expect(clippy::print_stderr, reason = "a skip must be seen")]
    {
        eprintln!("skipped: {test}: {reason}");
    }
    Ok(true)
}
