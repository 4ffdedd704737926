//! A control group of a test's own, below the cgroup v2 mount wherever that is, removed with all that runs in it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait;

const PREFIX: &str = "callgate-test-";
/// How many this process has made.
static MADE: AtomicU32 = AtomicU32::new(0);

/// A cgroup directory; dropping it kills what is in it and removes it with everything below.
#[derive(Debug)]
pub struct Cgroup {
    dir: PathBuf,
    mount: PathBuf,
}

impl Cgroup {
    /// Makes `callgate-test-PID-NUMBER-THREAD` at the root of the cgroup v2 mount, after removing what dead test
    /// processes left there. A test's thread has the test's name.
    ///
    /// # Errors
    /// If there is no cgroup v2 mount or the directory can't be made (that needs root).
    pub fn new() -> Result<Self> {
        let mount = mount_point()?;
        [Some(&mount), version_1_mount().as_ref()]
            .into_iter()
            .flatten()
            .for_each(|tree| sweep(tree));
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let thread = thread::current();
        let name = short(thread.name().unwrap_or("thread"));
        let dir = mount.join(format!("{PREFIX}{}-{number}-{name}", process::id()));
        fs::create_dir(&dir).with_context(|| format!("can't make the cgroup {}", dir.display()))?;
        Ok(Self { dir, mount })
    }

    /// Makes (or finds) the child `name` and returns its directory.
    ///
    /// # Errors
    /// If the directory can't be made.
    pub fn child(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join(name);
        match fs::create_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(error).with_context(|| format!("can't make the cgroup {}", dir.display()))
            }
            _ => Ok(dir),
        }
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The path of the child `name` as the kernel shows it in `/proc/PID/cgroup`: `/callgate-test-.../name`.
    #[must_use]
    pub fn kernel_path(&self, name: &str) -> String {
        let below = self.dir.strip_prefix(&self.mount).unwrap_or(&self.dir);
        format!("/{}/{name}", below.display())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        remove(&self.dir);
    }
}

/// Where cgroup v2 is mounted: `/sys/fs/cgroup`, `/sys/fs/cgroup/unified`, or elsewhere.
///
/// # Errors
/// If it is mounted nowhere.
pub fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").context("can't read mountinfo")?;
    match mounts.lines().find_map(cgroup2_mount) {
        Some(path) => Ok(path),
        None => bail!("cgroup v2 is not mounted; mount it: mount -t cgroup2 none /sys/fs/cgroup/unified"),
    }
}

/// Where systemd's own tree of version 1 is mounted, on a hybrid layout: nspawn mirrors its cgroups there.
#[must_use]
pub fn version_1_mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").ok()?;
    mounts.lines().find_map(systemd_mount)
}

/// The mount point in a line of mountinfo (proc_pid_mountinfo(5)), if it is the root of a cgroup2.
fn cgroup2_mount(line: &str) -> Option<PathBuf> {
    root_mount(line, |kind| kind.starts_with("cgroup2 "))
}

/// The same, of systemd's own tree of version 1.
fn systemd_mount(line: &str) -> Option<PathBuf> {
    let is_named = |options: &str| options.split(',').any(|option| option == "name=systemd");
    root_mount(line, |kind| {
        kind.starts_with("cgroup ") && kind.rsplit(' ').next().is_some_and(is_named)
    })
}

/// The mount point, if the file system's own root is there and what follows the separator is wanted.
fn root_mount(line: &str, wanted: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    (wanted(after) && root == "/").then(|| PathBuf::from(point))
}

/// Ends every process in the tree of `dir`. The kernel's own way (Linux 5.14) also catches what forks meanwhile.
pub fn kill_all(dir: &Path) {
    if fs::write(dir.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    for member in tree(dir) {
        let pids = fs::read_to_string(member.join("cgroup.procs")).unwrap_or_default();
        for pid in pids
            .lines()
            .filter_map(|line| line.parse().ok())
            .filter(|pid| *pid > 0)
        {
            // Gone already is as good as killed; whoever else is left keeps the directory, and is reported.
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
    }
}

/// Kills and removes, bottom up; a directory goes as soon as its last process has been taken down.
pub fn remove(dir: &Path) {
    let removed = wait::until("an empty cgroup", wait::PATIENCE, || {
        // In every round: a process that was just being started may join after the first.
        kill_all(dir);
        for member in tree(dir) {
            // Busy for as long as a process is still dying; the next round tries again.
            drop(fs::remove_dir(member));
        }
        (!dir.exists()).then_some(())
    });
    if removed.is_err() {
        #[expect(
            clippy::print_stderr,
            reason = "a Drop has no other way to say what was left behind"
        )]
        {
            eprintln!("left behind: the cgroup {}", dir.display());
        }
    }
}

/// `dir` and all directories below it, children before parents.
fn tree(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let children = entries.map(|entry| entry.path()).filter(|path| path.is_dir());
    let mut all: Vec<PathBuf> = children.flat_map(|child| tree(&child)).collect();
    all.push(dir.to_owned());
    all
}

/// Removes the cgroups of test processes that were killed before they could do it.
fn sweep(mount: &Path) {
    for entry in fs::read_dir(mount).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX))
            .and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove(&entry.path());
        }
    }
}

/// A cgroup's name has at most 255 bytes; a test's name may be longer than is useful here.
fn short(name: &str) -> String {
    let tail = name.rsplit("::").next().unwrap_or(name);
    tail.chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '_')
        .take(80)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_mount_of_a_hybrid_layout() {
        let line = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";
        assert_eq!(cgroup2_mount(line), Some("/sys/fs/cgroup/unified".into()));
    }

    #[test]
    fn finds_systemds_own_tree_of_version_1() {
        let line = "36 31 0:33 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd";
        assert_eq!(systemd_mount(line), Some("/sys/fs/cgroup/systemd".into()));
        for other in [
            "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu",
            "36 31 0:33 /a /mnt rw - cgroup cgroup rw,name=systemd",
            "41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
        ] {
            assert_eq!(systemd_mount(other), None, "{other}");
        }
    }

    #[test]
    fn what_a_killed_run_left_is_removed_wherever_it_is() -> Result<()> {
        crate::require!(Root, CgroupV2);
        // Beyond the largest process id (include/linux/threads.h).
        let name = format!("{PREFIX}4194305-{}-gone", process::id());
        for tree in [Some(mount_point()?), version_1_mount()].into_iter().flatten() {
            fs::create_dir_all(tree.join(&name).join("below"))?;
        }
        let own = Cgroup::new()?;
        for tree in [Some(mount_point()?), version_1_mount()].into_iter().flatten() {
            assert!(!tree.join(&name).exists(), "{}", tree.display());
        }
        assert!(own.dir().exists());
        Ok(())
    }

    #[test]
    fn passes_over_version_1_and_bind_mounts_of_a_subtree() {
        assert_eq!(
            cgroup2_mount("32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu"),
            None
        );
        assert_eq!(cgroup2_mount("41 31 0:38 /a /mnt rw - cgroup2 cgroup2 rw"), None);
    }

    #[test]
    fn a_tests_path_becomes_its_last_part() {
        assert_eq!(short("redirect::every_path"), "every_path");
    }
}
