//! Which kernels are tried, where they come from, and what is kept of them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::archive::Archive;
use crate::cmd;
use crate::setup::Suite;

/// The package whose dependencies name a suite's present kernel: names of kernels change with each point release.
const META: &str = "linux-image-cloud-amd64";

/// One line of kernels, and what is expected of them.
#[derive(Debug)]
pub(crate) struct Line {
    /// As one asks for it: `6.12`, or `7.x` for whatever minor version the suite has.
    pub(crate) name: &'static str,
    /// Debian's suite that has it.
    pub(crate) suite: &'static str,
    /// Features that it has not, by the names that `callgate doctor` gives them; none for a kernel that callgate runs on.
    pub(crate) lacks: &'static [&'static str],
}

/// All lines. Those that lack nothing are `TESTED_KERNELS` in agent/src/ebpf/features.rs.
pub(crate) const LINES: &[Line] = &[
    Line {
        name: "5.10",
        suite: "bullseye",
        lacks: &[
            "bpf_get_netns_cookie in sock_ops programs",
            "bpf_set_retval in sock_addr programs",
        ],
    },
    Line {
        name: "6.1",
        suite: "bookworm",
        lacks: &[],
    },
    Line {
        name: "6.12",
        suite: "trixie",
        lacks: &[],
    },
    Line {
        name: "7.x",
        suite: "trixie-backports",
        lacks: &[],
    },
];

/// Modules that tests or agent use, directories taken whole: the kernel loads them when they are asked for, as on
/// an installed system.
const MODULES: &[&str] = &[
    "kernel/fs/fuse",
    "kernel/net",
    "kernel/lib",
    "kernel/crypto",
    "kernel/arch/x86/crypto",
    "kernel/drivers/net/dummy.ko",
    "kernel/drivers/net/tun.ko",
    "kernel/drivers/net/veth.ko",
];

/// The file that says which modules were taken.
const CHOSEN: &str = "modules.txt";

/// A kernel that is on this machine.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// As `uname -r` says it.
    pub(crate) release: String,
    /// What QEMU starts.
    pub(crate) image: PathBuf,
    /// Its modules, as an archive to be unpacked at the root.
    pub(crate) modules: PathBuf,
}

impl Line {
    /// Downloads the line's present kernel, unless it is there.
    pub(crate) fn fetch(&self) -> Result<Kernel> {
        let suite = Suite::alone(self.suite)?;
        suite.update()?;
        let package = suite
            .dependencies(META)?
            .into_iter()
            .find(|name| name.strip_prefix("linux-image-").is_some_and(starts_with_digit))
            .with_context(|| format!("{META} of Debian's suite {} names no kernel", self.suite))?;
        let release = package.trim_start_matches("linux-image-").to_owned();
        if !self.has(&release) {
            bail!(
                "Debian's suite {} has {release} now, not {}: change `LINES` in xtask/src/vm/kernels.rs",
                self.suite,
                self.name
            );
        }
        let dir = cmd::root().join("target/vm/kernels").join(&release);
        if !is_whole(&dir) {
            remove(&dir)?;
            unpack(&suite, &package, &release, &dir)?;
        }
        Ok(Kernel {
            image: dir.join("vmlinuz"),
            modules: dir.join("modules.cpio"),
            release,
        })
    }

    /// Whether a release belongs to this line.
    fn has(&self, release: &str) -> bool {
        let line = self.name.trim_end_matches('x').trim_end_matches('.');
        release
            .strip_prefix(line)
            .is_some_and(|rest| rest.starts_with('.'))
    }
}

fn starts_with_digit(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit())
}

/// Whether there are image and modules, these and no others.
fn is_whole(dir: &Path) -> bool {
    fs::read_to_string(dir.join(CHOSEN)).is_ok_and(|chosen| chosen == MODULES.join("\n"))
}

/// Puts image and modules at `dir`, whole or not at all.
fn unpack(suite: &Suite, package: &str, release: &str, dir: &Path) -> Result<()> {
    let beside = |kind| dir.with_file_name(format!("{release}.{kind}"));
    let (raw, kept) = (beside("raw"), beside("new"));
    for place in [&raw, &kept] {
        remove(place)?;
        fs::create_dir_all(place).with_context(|| format!("can't make {}", place.display()))?;
    }
    // Since 7.0 image and modules are packages of their own.
    let parts = suite.dependencies(package)?.into_iter().filter(|name| {
        ["linux-binary-", "linux-modules-"]
            .iter()
            .any(|part| name.strip_prefix(part) == Some(release))
    });
    let packages: Vec<_> = parts.chain([package.to_owned()]).collect();
    suite.unpack(&packages, &raw)?;
    let modules = ["lib/modules", "usr/lib/modules"]
        .map(|place| raw.join(place).join(release))
        .into_iter()
        .find(|place| place.join("kernel").is_dir())
        .with_context(|| format!("{package} has no modules"))?;
    let image = [
        raw.join(format!("boot/vmlinuz-{release}")),
        modules.join("vmlinuz"),
    ];
    let image = image.iter().find(|file| file.is_file());
    let image = image.with_context(|| format!("{package} has no image"))?;
    fs::copy(image, kept.join("vmlinuz")).context("can't keep the image")?;
    keep_modules(&modules, release, &kept)?;
    fs::write(kept.join(CHOSEN), MODULES.join("\n")).context("can't note the modules")?;
    remove(&raw)?;
    fs::rename(&kept, dir).with_context(|| format!("can't make {}", dir.display()))
}

/// Writes `modules.cpio`: the chosen modules, uncompressed (busybox reads no xz), with the table of who needs whom.
fn keep_modules(from: &Path, release: &str, kept: &Path) -> Result<()> {
    let stage = kept.join("stage");
    let to = stage.join("lib/modules").join(release);
    for name in MODULES {
        let target = to.join(name);
        let parent = target.parent().unwrap_or(&to);
        fs::create_dir_all(parent).with_context(|| format!("can't make {}", parent.display()))?;
        for source in [from.join(name), from.join(format!("{name}.xz"))] {
            if source.exists() {
                let mut copy = cmd::command("cp", ["--recursive"]);
                copy.arg(&source).arg(parent);
                cmd::run(copy)?;
            }
        }
    }
    let script = r#"find "$1" -name '*.xz' -exec xz --decompress {} +"#;
    let mut expand = cmd::command("sh", ["-c", script, "sh"]);
    expand.arg(&to);
    cmd::run(expand)?;
    for table in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        // depmod wants them, be there nothing to say.
        let content = fs::read(from.join(table)).unwrap_or_default();
        fs::write(to.join(table), content).with_context(|| format!("can't write {table}"))?;
    }
    let mut depmod = cmd::command("depmod", ["--basedir"]);
    depmod.arg(&stage).arg(release);
    cmd::run(depmod)?;
    let mut archive = Archive::default();
    archive.tree(&stage.join("lib"), Path::new("usr/lib"))?;
    archive.write(&kept.join("modules.cpio"))?;
    remove(&stage)
}

fn remove(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("can't remove {}", dir.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_belongs_to_its_line_alone() {
        let line = |name| LINES.iter().find(|line| line.name == name).unwrap();
        assert!(line("6.1").has("6.1.0-50-cloud-amd64"));
        assert!(!line("6.1").has("6.12.117+deb13-cloud-amd64"));
        assert!(line("7.x").has("7.3.4+deb13-cloud-amd64"));
        assert!(!line("7.x").has("6.12.117+deb13-cloud-amd64"));
    }

    #[test]
    fn what_the_agent_calls_tested_is_what_is_tried() {
        let source = include_str!("../../../agent/src/ebpf/features.rs");
        let list = source.split_once("TESTED_KERNELS: &[&str] = &[").unwrap().1;
        let list = list.split_once(']').unwrap().0;
        let said: Vec<_> = list
            .split(',')
            .map(|name| name.trim().trim_matches('"'))
            .filter(|name| !name.is_empty())
            .collect();
        let tried = LINES.iter().filter(|line| line.lacks.is_empty());
        assert_eq!(said, tried.map(|line| line.name).collect::<Vec<_>>());
    }
}
