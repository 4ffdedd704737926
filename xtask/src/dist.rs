//! `cargo xtask dist`: the binary for Debian 12 and the package that installs it as a service.
//!
//! Laid out below `target/dist`, then packed by Debian's own tools from `agent/dist/debian`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::cmd::{self, Outcome};
use crate::setup;
use crate::test;
use crate::train;

/// The version of the product, which all of the workspace shares.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A version that Debian takes for a newer one: what tests upgrade to.
pub(crate) const NEXT: &str = concat!(env!("CARGO_PKG_VERSION"), "+next");

/// The C library of Debian 12, the oldest that the package is for.
const OLDEST_LIBC: (u32, u32) = (2, 36);

/// What the package holds beside the binary: from the workspace's root, to the layout that `debian/*.install` names.
const FILES: &[(&str, &str)] = &[
    ("agent/dist/debian", "debian"),
    ("agent/dist/callgate.service", "debian/callgate.service"),
    (
        "agent/dist/callgate-slice.conf",
        "callgate-.slice.d/50-callgate.conf",
    ),
    (
        "agent/dist/callgate-slice.conf",
        "callgate.slice.d/50-callgate.conf",
    ),
    ("agent/config/default.toml", "callgate.toml"),
    ("agent/dist/policy.example.toml", "policy.example.toml"),
    ("agent/dist/man", "man"),
    ("agent/dist/completions/callgate.bash", "completions/callgate"),
    ("agent/dist/completions/_callgate", "completions/_callgate"),
    (
        "agent/dist/completions/callgate.fish",
        "completions/callgate.fish",
    ),
    ("README.md", "README.md"),
    ("SECURITY.md", "SECURITY.md"),
    ("CHANGELOG.md", "CHANGELOG.md"),
];

/// How a binary is built.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Profile {
    /// Quickly, for tests.
    Dev,
    /// Optimised, for hosts.
    Release,
}

/// Builds the package and says where it is.
pub(crate) fn run(profile: Profile) -> Result<Outcome> {
    setup::all()?;
    let package = package(profile, VERSION)?;
    println!("{}", package.display());
    Ok(Outcome::Good)
}

/// Builds the package, which then says that it is `version`.
pub(crate) fn package(profile: Profile, version: &str) -> Result<PathBuf> {
    let binary = match profile {
        Profile::Release => train::build()?,
        Profile::Dev => test::build("callgate", "callgate")?,
    };
    runs_on_debian_12(&binary)?;
    let place = cmd::root().join("target/dist").join(match profile {
        Profile::Release => "release",
        Profile::Dev => "dev",
    });
    let tree = place.join(format!("callgate-{version}"));
    if tree.exists() {
        fs::remove_dir_all(&tree).with_context(|| format!("can't remove {}", tree.display()))?;
    }
    for (from, to) in FILES {
        copy(&cmd::root().join(from), &tree.join(to))?;
    }
    copy(&binary, &tree.join("callgate"))?;
    fs::write(tree.join("debian/changelog"), changelog(version)).context("debian/changelog")?;
    pack(&tree, profile)?;
    let architecture = cmd::read(cmd::command("dpkg", ["--print-architecture"])).context("dpkg")?;
    let package = place.join(format!("callgate_{version}_{}.deb", architecture.trim()));
    if !package.is_file() {
        bail!("dpkg-buildpackage made no {}", package.display());
    }
    Ok(package)
}

/// What changed stands in CHANGELOG.md, which the package holds; Debian's own log names the version.
fn changelog(version: &str) -> String {
    format!(
        "callgate ({version}) unstable; urgency=medium\n\n  * See CHANGELOG.md.\n\n \
         -- callgate maintainers <maintainers@callgate.invalid>  Thu, 01 Jan 2026 00:00:00 +0000\n"
    )
}

fn pack(tree: &Path, profile: Profile) -> Result<()> {
    let mut command = cmd::command("dpkg-buildpackage", ["--build=binary", "--no-sign"]);
    command.current_dir(tree);
    // Debian's way: the symbols go into a package of their own (callgate-dbgsym).
    command.env("DH_QUIET", "1");
    if profile == Profile::Dev {
        command
            .env("DEB_BUILD_OPTIONS", "noautodbgsym nostrip")
            .env("CALLGATE_DEB_COMPRESSION", "none");
    }
    cmd::run(command).context("the package")
}

/// Refuses a binary that asks for a newer C library than Debian 12 has.
fn runs_on_debian_12(binary: &Path) -> Result<()> {
    let symbols = cmd::command("objdump", ["-T".as_ref(), binary.as_os_str()]);
    let symbols = cmd::read(symbols).context("can't read the binary's symbols (package binutils)")?;
    match newest_libc(&symbols) {
        Some(newest) if newest > OLDEST_LIBC => bail!(
            "the binary needs glibc {}.{}, Debian 12 has {}.{}: build it on Debian 12",
            newest.0,
            newest.1,
            OLDEST_LIBC.0,
            OLDEST_LIBC.1
        ),
        Some(_) => Ok(()),
        None => bail!("the binary names no version of glibc: it was not built for Debian"),
    }
}

/// The newest version of glibc that a symbol asks for.
fn newest_libc(symbols: &str) -> Option<(u32, u32)> {
    let versions = symbols.split("GLIBC_").skip(1).filter_map(|rest| {
        let version = rest.split([')', ' ', '\n']).next()?;
        let mut parts = version.split('.').map_while(|part| part.parse().ok());
        Some((parts.next()?, parts.next()?))
    });
    versions.max()
}

/// Copies a file or a directory.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if from.is_dir() {
        for entry in fs::read_dir(from).with_context(|| format!("can't read {}", from.display()))? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).with_context(|| format!("can't make {}", parent.display()))?;
    }
    fs::copy(from, to).with_context(|| format!("can't copy {}", from.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_counts_whatever_the_order() {
        let symbols =
            "0 DF *UND* 0 (GLIBC_2.34) pidfd_open\n0 DF *UND* 0 (GLIBC_2.4) read\n0 (GLIBC_2.36) x\n";
        assert_eq!(newest_libc(symbols), Some((2, 36)));
        assert_eq!(newest_libc("0 DF *UND* 0 (GLIBC_2.2.5) malloc"), Some((2, 2)));
        assert_eq!(newest_libc("nothing"), None);
    }
}
