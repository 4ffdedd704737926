//! `cargo xtask setup`: from a fresh Debian with Rust to a machine that can build, test and demonstrate.
//!
//! Each step looks first and does only what is missing, so a second run takes no time; every other verb starts
//! with the steps that it needs.

mod apt;
mod suite;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cmd::{self, Outcome};

pub(crate) use suite::Suite;

/// The linker for BPF objects, and the LLVM that it is built against.
const BPF_LINKER: &str = "0.13.0";
const LLVM: &str = "22";

/// The judge of dependencies.
const CARGO_DENY: &str = "0.20.2";

/// What building needs: a linker for Rust, and LLVM for bpf-linker.
const BUILD_PACKAGES: &[&str] = &[
    "gcc",
    "g++",
    "libc6-dev",
    "llvm-22-dev",
    "libpolly-22-dev",
    "libzstd-dev",
    "zlib1g-dev",
    "libxml2-dev",
    "binutils",
    "debhelper",
    "dpkg-dev",
];

/// What tests and demo use: real clients, a real server, and the tools that make a sandbox.
const RUN_PACKAGES: &[&str] = &[
    "bind9-dnsutils",
    "bpftool",
    "ca-certificates",
    "curl",
    "git",
    "iproute2",
    "iptables",
    "mmdebstrap",
    "nginx-light",
    "openssl",
    "podman",
    "procps",
    "python3",
    "python3-grpcio",
    "python3-h2",
    "runc",
    "slirp4netns",
    "strace",
    "systemd-container",
    "tmux",
    "util-linux",
];

/// What booting other kernels takes beside QEMU.
const VM_PACKAGES: &[&str] = &["binutils", "busybox-static", "kmod", "xz-utils"];
const QEMU: &str = "qemu-system-x86";

/// Debian's own compiler and its source, a matching pair, for where rustup can't add `rust-src`.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const FALLBACK_PACKAGES: &[&str] = &["rustc-web", "rust-web-src"];

/// Everything, with a word on each step.
pub(crate) fn run() -> Result<Outcome> {
    all()?;
    cargo_deny()?;
    eprintln!(
        "setup: packages, core's source, bpf-linker {BPF_LINKER} and cargo-deny {CARGO_DENY} are there"
    );
    Ok(Outcome::Good)
}

/// Everything that building and running need; silent where nothing is missing.
pub(crate) fn all() -> Result<()> {
    let packages: Vec<_> = [BUILD_PACKAGES, RUN_PACKAGES].concat();
    apt::install(&packages)?;
    core_source()?;
    bpf_linker()
}

/// What `cargo xtask vm` needs.
pub(crate) fn vm() -> Result<()> {
    all()?;
    apt::install(VM_PACKAGES)?;
    // On Debian 12 by its backports: its own QEMU conflicts with newer qemu-utils, which some machines have.
    match suite::own().as_deref() {
        Some(own @ "bookworm") => apt::install_from(QEMU, &format!("{own}-backports")),
        _ => apt::install(&[QEMU]),
    }
}

/// Prepares a build of the agent: where its build script finds bpf-linker and a compiler with core's source.
pub(crate) fn prepare(mut command: Command) -> Command {
    command.env("PATH", cmd::build_path());
    if !has_core_source("rustc") && has_core_source(DEBIAN_RUSTC) {
        command.env("CALLGATE_BPF_RUSTC", DEBIAN_RUSTC);
    }
    command
}

/// Whether `cargo NAME` works; tries to add the component it is in. A compiler without rustup may lack it.
pub(crate) fn has_component(name: &str, component: &str) -> bool {
    let works = || cmd::read(cmd::cargo([name, "--version"])).is_some();
    if works() {
        return true;
    }
    let added =
        cmd::find("rustup").map(|_| cmd::run(cmd::command("rustup", ["component", "add", component])));
    matches!(added, Some(Ok(()))) && works()
}

/// `-Z build-std=core` needs the source of core that belongs to the compiler.
fn core_source() -> Result<()> {
    if has_core_source("rustc") || has_core_source(DEBIAN_RUSTC) {
        return Ok(());
    }
    if cmd::find("rustup").is_some() {
        let added = cmd::run(cmd::command("rustup", ["component", "add", "rust-src"]));
        match added {
            Ok(()) if has_core_source("rustc") => return Ok(()),
            Ok(()) => {
                eprintln!("setup: rustup says that rust-src is there, but it isn't; taking Debian's compiler")
            }
            Err(error) => eprintln!("setup: {error:#}; taking Debian's compiler for the BPF part"),
        }
    }
    apt::install(FALLBACK_PACKAGES)?;
    if !has_core_source(DEBIAN_RUSTC) {
        bail!("{DEBIAN_RUSTC} has no source of core, although rust-web-src is installed");
    }
    Ok(())
}

fn has_core_source(rustc: &str) -> bool {
    cmd::read(cmd::command(rustc, ["--print", "sysroot"]))
        .map(|sysroot| Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml"))
        .is_some_and(|file| file.exists())
}

fn bpf_linker() -> Result<()> {
    if let Some(found) = cmd::find("bpf-linker") {
        let version = cmd::read(cmd::command(&found.to_string_lossy(), ["--version"])).unwrap_or_default();
        if version.trim().ends_with(BPF_LINKER) {
            return Ok(());
        }
        eprintln!(
            "setup: {} is {:?}, not {BPF_LINKER}",
            found.display(),
            version.trim()
        );
    }
    eprintln!("setup: building bpf-linker {BPF_LINKER}, about a minute");
    let version = format!("={BPF_LINKER}");
    let feature = format!("llvm-{LLVM}");
    let mut install = cmd::cargo([
        "install",
        "bpf-linker",
        "--locked",
        "--force",
        "--version",
        &version,
    ]);
    install.args(["--no-default-features", "--features", &feature]);
    // Not in the workspace: its configuration is not bpf-linker's.
    install.current_dir("/").env("LLVM_PREFIX", llvm_prefix()?);
    cmd::run(install).context("bpf-linker")
}

/// What `cargo xtask check` and `ci` judge dependencies with; building and running do without.
pub(crate) fn cargo_deny() -> Result<()> {
    let installed = cmd::read(cmd::cargo(["deny", "--version"])).unwrap_or_default();
    if installed.trim().ends_with(CARGO_DENY) {
        return Ok(());
    }
    eprintln!("setup: building cargo-deny {CARGO_DENY}, about a minute");
    let version = format!("={CARGO_DENY}");
    // Without optimisation: that would take three times as long, and it runs for a second.
    let mut install = cmd::cargo([
        "install",
        "cargo-deny",
        "--locked",
        "--force",
        "--debug",
        "--version",
        &version,
    ]);
    install.current_dir("/").env("CARGO_PROFILE_DEV_DEBUG", "0");
    cmd::run(install).context("cargo-deny")
}

/// Where the LLVM is that bpf-linker is built against.
pub(crate) fn llvm_prefix() -> Result<PathBuf> {
    let prefix = PathBuf::from(format!("/usr/lib/llvm-{LLVM}"));
    if !prefix.is_dir() {
        bail!(
            "{} is missing, although llvm-{LLVM}-dev is installed",
            prefix.display()
        );
    }
    Ok(prefix)
}
