//! How cargo compiles the kernel programs; `agent/build.rs` and `xtask vm` share it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The dev profile: less optimised and in several units, to see what the verifier says when the compiler does
/// otherwise; optimised so far that the programs fit a BPF stack. Without assertions: they end in functions that never
/// return, which no verifier takes.
const DEV: &[&str] = &[
    "profile.dev.opt-level=2",
    "profile.dev.debug-assertions=false",
    "profile.dev.overflow-checks=false",
];

/// A cargo that compiles the package for a kernel of this architecture (verb `build`), and where it leaves the object.
/// Every agent embeds the release build, a debug build of it too: tests run what production runs.
pub(crate) fn cargo(
    (cargo, verb): (&OsStr, &str),
    (package, target_dir): (&Path, &Path),
    (arch, little_endian): (&str, bool),
    release: bool,
) -> (Command, PathBuf) {
    let target = if little_endian {
        "bpfel-unknown-none"
    } else {
        "bpfeb-unknown-none"
    };
    let mut flags = vec![
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
    ];
    if !release {
        // The build that only we make: another's newer compiler may warn of more.
        flags.push("-Dwarnings".into());
    }
    let mut command = Command::new(cargo);
    command
        .current_dir(package)
        .args([verb, "--bin", "capture", "-Z", "build-std=core"])
        .args(["--target", target, "--target-dir"])
        .arg(target_dir)
        // `-Z` on a stable compiler, for this one build only.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    for name in [
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTFLAGS",
        "CARGO_BUILD_TARGET",
    ] {
        command.env_remove(name);
    }
    let place = if release {
        command.arg("--release");
        "release/capture"
    } else {
        for setting in DEV {
            command.args(["--config", setting]);
        }
        "debug/capture"
    };
    (command, target_dir.join(target).join(place))
}
