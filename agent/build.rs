//! Compiles the kernel programs for BPF and leaves the object where `ebpf::object` embeds it.
//!
//! cargo can't yet build one package for two targets in one go, so this runs a cargo of its own, with a
//! target directory of its own (no lock is shared). Without `bpf-linker` it leaves an empty object: checks and
//! unit tests work, and loading says what to do.
//!
//! `CALLGATE_BPF_RUSTC` names another compiler whose `core` sources are installed (Debian's `rust-web-src`);
//! `CALLGATE_BPF_SKIP=1` leaves the empty object without trying.

#[path = "build/object.rs"]
mod object;

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

const OBJECT: &str = "capture.o";

fn main() -> Result<()> {
    let out = PathBuf::from(variable("OUT_DIR")?);
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    for path in [
        "../agent-ebpf",
        "../agent-common",
        "../Cargo.lock",
        "build.rs",
        "build",
    ] {
        println!("cargo:rerun-if-changed={}", root.join(path).display());
    }
    for name in ["CALLGATE_BPF_RUSTC", "CALLGATE_BPF_SKIP"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    // A linker that appears later must trigger a rebuild, wherever it does.
    println!("cargo:rerun-if-env-changed=PATH");
    let object = out.join(OBJECT);
    if env::var_os("CALLGATE_BPF_SKIP").is_some_and(|value| value == "1") {
        return fs::write(&object, []).context("can't write the empty object");
    }
    let Some(linker) = find("bpf-linker") else {
        // Only then: whatever else cargo installs there changes it too, and while it is not there every build begins anew.
        if let Some(installed) = cargo_bin() {
            println!("cargo:rerun-if-changed={}", installed.display());
        }
        println!(
            "cargo:warning=bpf-linker is missing: built without kernel programs; run `cargo xtask setup`, or \
             `cargo install bpf-linker --locked` with LLVM's development files"
        );
        return fs::write(&object, []).context("can't write the empty object");
    };
    println!("cargo:rerun-if-changed={}", linker.display());
    let built = build(&root.join("../agent-ebpf"), &out.join("bpf"))?;
    fs::copy(&built, &object).with_context(|| format!("can't copy {}", built.display()))?;
    Ok(())
}

fn variable(name: &str) -> Result<OsString> {
    env::var_os(name).with_context(|| format!("cargo did not set {name}"))
}

/// Where cargo installs programs.
fn cargo_bin() -> Option<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")))?;
    Some(home.join("bin"))
}

fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(cargo_bin())
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
}

/// Runs cargo for the kernel's target. Always optimised: the verifier has no patience for debug code.
fn build(package: &Path, target_dir: &Path) -> Result<PathBuf> {
    let little_endian = variable("CARGO_CFG_TARGET_ENDIAN")? != "big";
    let arch = variable("CARGO_CFG_TARGET_ARCH")?
        .into_string()
        .unwrap_or_default();
    let (mut cargo, built) = object::cargo(
        (&variable("CARGO")?, "build"),
        (package, target_dir),
        (&arch, little_endian),
        true,
    );
    if let Some(compiler) = env::var_os("CALLGATE_BPF_RUSTC") {
        cargo.env("RUSTC", compiler);
    }
    let output = cargo
        .output()
        .context("can't run cargo for the kernel programs")?;
    if !output.status.success() {
        bail!(
            "the kernel programs don't compile:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(built)
}
