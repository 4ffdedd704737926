//! Running other programs: shown, and failed with.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

/// How a verb ended; the exit codes are those of the product.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    /// All is well: 0.
    Good,
    /// The answer is no: 1.
    No,
    /// The environment lacks something: 3.
    Lacking,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(match outcome {
            Outcome::Good => 0,
            Outcome::No => 1,
            Outcome::Lacking => 3,
        })
    }
}

/// The root of the workspace.
pub(crate) fn root() -> PathBuf {
    // cargo tells a program that it runs where its package is now; the path at build time may be an old one.
    let package = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&package)
        .parent()
        .map_or_else(|| PathBuf::from("."), Path::to_owned)
}

/// A program with its arguments, in the workspace's root, with no standard input.
pub(crate) fn command<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(program);
    command
        .args(args)
        .current_dir(root())
        .stdin(std::process::Stdio::null());
    command
}

/// The cargo that runs us.
pub(crate) fn cargo<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    command(
        &env::var("CARGO").unwrap_or_else(|_unset| "cargo".to_owned()),
        args,
    )
}

/// Shows a command as one would type it.
pub(crate) fn show(command: &Command) {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .collect();
    let program = Path::new(words[0])
        .file_name()
        .unwrap_or(words[0])
        .to_string_lossy();
    let args = words[1..].iter().map(|arg| arg.to_string_lossy());
    eprintln!(
        "$ {}",
        std::iter::once(program).chain(args).collect::<Vec<_>>().join(" ")
    );
}

/// Shows and runs a command; its standard output goes to standard error, which is where progress belongs.
pub(crate) fn run(mut command: Command) -> Result<()> {
    show(&command);
    let status = command.stdout(std::io::stderr()).status();
    let status = status.with_context(|| format!("can't start {}", command.get_program().display()))?;
    if !status.success() {
        bail!("{} failed: {status}", command.get_program().display());
    }
    Ok(())
}

/// What a command writes to standard output; `None` if it can't be started or fails.
pub(crate) fn read(mut command: Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}

/// Where a program is: on the PATH, or where Debian and cargo put them.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let mut dirs = env::split_paths(&path).chain(cargo_bin()).chain(usual);
    dirs.find_map(|dir| Some(dir.join(program)).filter(|file| file.is_file()))
}

/// Where `cargo install` puts programs.
pub(crate) fn cargo_bin() -> Option<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    home.map(|dir| dir.join("bin"))
}

/// PATH with cargo's own directory, for builds that look for bpf-linker; as it is where that is on it already,
/// since another PATH means another build.
pub(crate) fn build_path() -> std::ffi::OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let Some(own) = cargo_bin().filter(|own| env::split_paths(&path).all(|dir| dir != *own)) else {
        return path;
    };
    let all = env::split_paths(&path).chain([own]);
    env::join_paths(all).unwrap_or(path)
}

/// Whether we are root.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}
