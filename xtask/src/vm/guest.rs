//! What the guest has: agent, tests, and the tools that they start, with the libraries of this machine.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::archive::Archive;
use super::build::Built;
use crate::cmd;

/// PID 1.
const INIT: &str = include_str!("init.sh");

/// Real programs, those that the tests start and those that the harness is made of.
const PROGRAMS: &[&str] = &[
    "bash", "cat", "chmod", "chown", "chrt", "comm", "cp", "curl", "cut", "date", "dd", "df", "dig",
    "dirname", "echo", "env", "false", "find", "getent", "grep", "head", "id", "ionice", "ip", "kill", "ln",
    "ls", "mkdir", "mkfifo", "mktemp", "mount", "mv", "nginx", "nice", "nsenter", "openssl", "pgrep",
    "pkill", "prlimit", "ps", "python3", "readlink", "renice", "rm", "rmdir", "script", "sed", "seq",
    "setpriv", "setsid", "sh", "sleep", "sort", "ss", "stat", "strace", "tail", "taskset", "tee", "timeout",
    "tmux", "touch", "tr", "true", "truncate", "umount", "uname", "unshare", "wc", "xargs",
];

/// Files that they read, where there are any.
const FILES: &[&str] = &[
    "/etc/group",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/protocols",
    "/etc/services",
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/ssl/openssl.cnf",
];

/// The same, directories.
const TREES: &[&str] = &["/etc/terminfo", "/usr/lib/locale/C.utf8", "/usr/lib/terminfo"];

/// Parts of Python's library that no test imports, by name of the directory.
const NOT_NEEDED: &[&str] = &[
    "dist-packages",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "test",
    "tkinter",
];
/// Python packages beside its own library.
const PYTHON_PACKAGES: &[&str] = &["h2", "hpack", "hyperframe"];

/// Directories that are mounted over, or written to.
const EMPTY: &[(&str, u32)] = &[
    ("dev", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("var/lib", 0o755),
    ("var/log/nginx", 0o755),
    ("var/tmp", 0o1777),
];

/// Writes the archive that all kernels start with.
pub(crate) fn write(built: &Built, file: &Path) -> Result<()> {
    let mut guest = Guest::default();
    guest.skeleton();
    for name in PROGRAMS {
        guest.program(&find(name)?)?;
    }
    guest
        .archive
        .copy(&find("busybox")?, Path::new("/usr/bin/busybox"))?;
    for name in FILES.iter().map(Path::new).filter(|file| file.is_file()) {
        guest.archive.copy(name, name)?;
    }
    for name in TREES.iter().map(Path::new).filter(|dir| dir.is_dir()) {
        guest.archive.tree(name, name)?;
    }
    guest.python()?;
    for program in [&built.agent, &built.probe, &built.tests] {
        guest.stripped(program)?;
    }
    for (name, object) in &built.objects {
        guest.archive.copy(object, &Path::new("/objects").join(name))?;
    }
    guest.archive.write(file)
}

/// Debian's program of this name, whatever else is on the PATH.
fn find(name: &str) -> Result<PathBuf> {
    let places = ["/usr/bin", "/usr/sbin"].map(|dir| Path::new(dir).join(name));
    let found = places.into_iter().find(|place| place.exists());
    found.with_context(|| format!("{name} is not installed: cargo xtask setup"))
}

#[derive(Default)]
struct Guest {
    archive: Archive,
    /// Programs and libraries whose own libraries have been seen to.
    linked: BTreeSet<PathBuf>,
}

impl Guest {
    /// Debian's layout, in which `/bin` and the like are links.
    fn skeleton(&mut self) {
        for (name, mode) in EMPTY {
            self.archive.directory(Path::new(name), *mode);
        }
        for name in ["bin", "lib", "lib64", "sbin"] {
            let target = Path::new("usr").join(name);
            self.archive.directory(&target, 0o755);
            self.archive.link(Path::new(name), &target);
        }
        // Standard input and output of PID 1, before it has mounted anything.
        self.archive.device(Path::new("dev/console"), 0o600, (5, 1));
        self.archive.device(Path::new("dev/null"), 0o666, (1, 3));
        self.archive.file(Path::new("init"), 0o755, INIT.as_bytes());
        self.archive
            .link(Path::new("usr/sbin/modprobe"), Path::new("../bin/busybox"));
        self.archive.file(
            Path::new("etc/hosts"),
            0o644,
            b"127.0.0.1 localhost\n::1 localhost\n",
        );
        self.archive
            .file(Path::new("etc/resolv.conf"), 0o644, b"nameserver 127.0.0.1\n");
        // As on Debian: else the C library takes only the first of a name's lines in /etc/hosts, and so no IPv6.
        self.archive
            .file(Path::new("etc/host.conf"), 0o644, b"multi on\n");
    }

    /// A program or library at its own place, behind whatever links lead there, and what it is linked with.
    fn program(&mut self, path: &Path) -> Result<()> {
        let dir = path.parent().context("a program at no place")?;
        let dir = fs::canonicalize(dir).with_context(|| format!("can't look at {}", dir.display()))?;
        let place = dir.join(path.file_name().unwrap_or_default());
        if fs::symlink_metadata(&place)?.is_symlink() {
            let target = fs::read_link(&place)?;
            self.archive.link(&place, &target);
            return self.program(&dir.join(target));
        }
        self.archive.copy(&place, &place)?;
        self.libraries(&place)
    }

    fn libraries(&mut self, of: &Path) -> Result<()> {
        if !self.linked.insert(of.to_owned()) {
            return Ok(());
        }
        let mut ldd = cmd::command("ldd", [of]);
        ldd.env("LC_ALL", "C").stderr(std::process::Stdio::null());
        // It fails for what is linked with nothing.
        let listing = cmd::read(ldd).unwrap_or_default();
        for library in listing.lines().filter_map(library) {
            self.program(&library)?;
        }
        Ok(())
    }

    /// One of our own, without what only a debugger reads.
    fn stripped(&mut self, program: &Path) -> Result<()> {
        let copy = program.with_extension("stripped");
        let mut objcopy = cmd::command("objcopy", ["--strip-debug"]);
        objcopy.args([program, copy.as_path()]);
        cmd::run(objcopy)?;
        self.archive.copy(&copy, program)?;
        fs::remove_file(&copy).with_context(|| format!("can't remove {}", copy.display()))?;
        self.libraries(program)
    }

    fn python(&mut self) -> Result<()> {
        let question = "import sysconfig; print(sysconfig.get_paths()['stdlib'])";
        let library =
            cmd::read(cmd::command("/usr/bin/python3", ["-c", question])).context("python3 does not run")?;
        self.python_tree(Path::new(library.trim()))?;
        for name in PYTHON_PACKAGES {
            let package = Path::new("/usr/lib/python3/dist-packages").join(name);
            if !package.is_dir() {
                bail!("{} is missing: cargo xtask setup", package.display());
            }
            self.python_tree(&package)?;
        }
        Ok(())
    }

    fn python_tree(&mut self, dir: &Path) -> Result<()> {
        for entry in fs::read_dir(dir)
            .with_context(|| format!("can't list {}", dir.display()))?
            .flatten()
        {
            let (path, name) = (entry.path(), entry.file_name());
            if path.is_dir() {
                if !NOT_NEEDED.iter().any(|not| name == *not) {
                    self.python_tree(&path)?;
                }
            } else if path.extension().is_some_and(|kind| kind == "so") {
                self.program(&path)?;
            } else if path.extension().is_some_and(|kind| kind == "py" || kind == "pyc") {
                self.archive.copy(&path, &path)?;
            }
        }
        Ok(())
    }
}

/// The file in a line of ldd: `libc.so.6 => /lib/.../libc.so.6 (0x...)` or `/lib64/ld-linux-x86-64.so.2 (0x...)`.
fn library(line: &str) -> Option<PathBuf> {
    let file = line.split_once("=> ").map_or(line, |(_, file)| file).trim();
    let file = file.split_once(" (").map_or(file, |(file, _)| file);
    file.starts_with('/').then(|| file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_off_ldds_lines() {
        let line = "\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)";
        assert_eq!(library(line), Some("/lib/x86_64-linux-gnu/libc.so.6".into()));
        assert_eq!(
            library("\t/lib64/ld-linux-x86-64.so.2 (0x00007f)"),
            Some("/lib64/ld-linux-x86-64.so.2".into())
        );
        assert_eq!(library("\tlinux-vdso.so.1 (0x00007f)"), None);
        assert_eq!(library("\tnot a dynamic executable"), None);
    }
}
