//! Real executables that are deleted, replaced, bind-mounted and too large.

use std::process::{Child, Command};

use nix::sys::stat::{fstat, stat};

use super::*;

/// A running copy of sleep; ended with the test.
struct Running {
    child: Child,
    held: HeldProcess,
    reported: FileId,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let child = command.spawn().unwrap();
        let held = HeldProcess::open(child.id()).unwrap();
        let found = fstat(held.executable().unwrap()).unwrap();
        let reported = FileId {
            device: found.st_dev,
            inode: found.st_ino,
        };
        Self {
            child,
            held,
            reported,
        }
    }

    fn inspect(&self, executables: &Executables, digest: bool) -> Executable {
        executables
            .inspect(&self.held, self.reported, digest.then_some(1))
            .unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// By another process: a descriptor that is open for writing here could be inherited by a child that another
/// test starts at that moment, and the copy then couldn't be run (ETXTBSY).
fn copy_of_sleep(to: &Path) {
    assert!(
        Command::new("cp")
            .arg("-L")
            .arg("/bin/sleep")
            .arg(to)
            .status()
            .unwrap()
            .success()
    );
}

fn executables() -> Executables {
    Executables::new(DEFAULT_MAX_DIGEST_BYTES)
}

#[test]
fn a_deleted_executable_has_a_digest_but_no_path() {
    let scratch = tempfile::tempdir().unwrap();
    let program = scratch.path().join("client");
    copy_of_sleep(&program);
    let running = Running::start(Command::new(&program).arg("60"));
    assert_eq!(
        running.inspect(&executables(), false).path.as_ref(),
        Some(&program)
    );
    std::fs::remove_file(&program).unwrap();
    let found = running.inspect(&executables(), true);
    assert_eq!(found.path, None);
    assert!(found.sha256.is_some());
}

#[test]
fn a_replaced_executable_does_not_lend_its_path() {
    let scratch = tempfile::tempdir().unwrap();
    let program = scratch.path().join("client");
    copy_of_sleep(&program);
    let running = Running::start(Command::new(&program).arg("60"));
    let other = scratch.path().join("other");
    std::fs::write(&other, "another content").unwrap();
    std::fs::rename(&other, &program).unwrap();
    let found = running.inspect(&executables(), false);
    assert_eq!(found.path, None);
    assert_eq!(found.inode, running.reported.inode);
}

#[test]
fn a_program_bind_mounted_over_another_does_not_borrow_its_path() {
    if crate::tests::lacks_root() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let (allowed, rogue) = (scratch.path().join("allowed"), scratch.path().join("rogue"));
    copy_of_sleep(&allowed);
    copy_of_sleep(&rogue);
    // In a mount namespace of its own, which goes with the process.
    let script = format!(
        "mount --bind {0} {1} && exec {1} 60",
        rogue.display(),
        allowed.display()
    );
    let mut child = Running::start(Command::new("unshare").args(["-m", "sh", "-c", &script]));
    let rogue_inode = stat(&rogue).unwrap().st_ino;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while child.reported.inode != rogue_inode {
        assert!(std::time::Instant::now() < deadline, "the shell did not exec");
        let found = fstat(child.held.executable().unwrap()).unwrap();
        child.reported.inode = found.st_ino;
        child.reported.device = found.st_dev;
        std::thread::yield_now();
    }
    let shown = std::fs::read_link(format!("/proc/{}/exe", child.held.pid())).unwrap();
    assert_eq!(shown, allowed, "the process claims the allowed path");
    assert_eq!(child.inspect(&executables(), false).path, None);
}

#[test]
fn another_file_than_the_reported_one_is_refused() {
    let own = HeldProcess::open(std::process::id()).unwrap();
    let found = fstat(own.executable().unwrap()).unwrap();
    let id = |device, inode| FileId { device, inode };
    for wrong in [
        id(found.st_dev, found.st_ino + 1),
        id(found.st_dev + 1, found.st_ino),
    ] {
        let result = executables().inspect(&own, wrong, None);
        assert!(
            matches!(result, Err(ExecutableError::Changed { .. })),
            "{wrong:?}"
        );
    }
    let mount = mount_of(&own, &own.executable().unwrap());
    assert!(mount.is_some(), "the mount of this program is in mountinfo");
}

#[test]
fn a_file_over_the_limit_has_no_digest() {
    let own = HeldProcess::open(std::process::id()).unwrap();
    let found = fstat(own.executable().unwrap()).unwrap();
    let reported = FileId {
        device: found.st_dev,
        inode: found.st_ino,
    };
    let seen = Executables::new(1024).inspect(&own, reported, Some(1)).unwrap();
    assert_eq!(seen.sha256, None);
    assert!(seen.path.is_some());
}

#[test]
fn a_digest_is_kept_only_once_the_file_has_settled() {
    let version = |seconds| Version {
        device: 1,
        inode: 1,
        changed: (seconds, 0),
        size: 1,
    };
    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap();
    assert!(version(now - 10).is_settled());
    assert!(!version(now).is_settled());
    assert!(!version(now + 10).is_settled());
}

#[test]
fn mounts_are_found_by_id_with_device_and_kind() {
    let text =
        "31 23 0:28 / /sys/fs/cgroup rw - fuse.sshfs x rw\n310 23 8:17 / / rw shared:1 - ext4 /dev/x rw\n";
    let mount = |device, is_local| Some(Mount { device, is_local });
    assert_eq!(find_mount(text, "310"), mount(makedev(8, 17), true));
    assert_eq!(find_mount(text, "31"), mount(makedev(0, 28), false));
    assert_eq!(find_mount(text, "3"), None);
}

#[test]
fn a_workload_that_ever_runs_new_files_has_no_more_of_them_read_and_another_has() {
    let scratch = tempfile::tempdir().unwrap();
    let program = scratch.path().join("client");
    copy_of_sleep(&program);
    // Digests of a file that was changed just now are not kept.
    let running = Running::start(Command::new(&program).arg("60"));
    let executables = Executables::new(LEAST);
    let digest_for = |workload| {
        let found = executables.inspect(&running.held, running.reported, Some(workload));
        found.unwrap().sha256
    };
    let made = (0..10_000).take_while(|_| digest_for(1).is_some()).count();
    assert!((16..10_000).contains(&made), "{made}");
    assert!(digest_for(2).is_some());
}
