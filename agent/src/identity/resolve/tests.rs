//! Real processes in cgroups of their own; without root these tests say so and stop.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::*;
use crate::identity::executable::DEFAULT_MAX_DIGEST_BYTES;

const WANT: Want = Want {
    exe: true,
    digest: false,
};
const NUMBER: u32 = 7;

/// A workload's cgroup tree, a scratch directory, and one process; all removed in the end.
struct Bed {
    mount: PathBuf,
    parent: String,
    scratch: tempfile::TempDir,
    made: Vec<PathBuf>,
    child: Option<Child>,
}

impl Bed {
    fn make(test: &str) -> Option<Self> {
        if crate::tests::lacks_root() {
            return None;
        }
        let mut bed = Self {
            mount: crate::enroll::Mount::find().unwrap().path().to_owned(),
            parent: format!("/callgate-test-{}-{test}", std::process::id()),
            scratch: tempfile::tempdir().unwrap(),
            made: Vec::new(),
            child: None,
        };
        bed.cgroup("");
        bed.cgroup("/callgate-w.slice");
        Some(bed)
    }

    /// Makes a cgroup below the parent; its path below the mount.
    fn cgroup(&mut self, below: &str) -> String {
        let path = format!("{}{below}", self.parent);
        let file = self.mount.join(&path[1..]);
        std::fs::create_dir(&file).unwrap();
        self.made.push(file);
        path
    }

    fn id(&self, cgroup: &str) -> u64 {
        std::fs::metadata(self.mount.join(&cgroup[1..])).unwrap().ino()
    }

    fn resolver(&self) -> Resolver {
        let workloads = [(NUMBER, WorkloadName::parse("w").unwrap())];
        Resolver::new(&self.mount, &self.parent, workloads, DEFAULT_MAX_DIGEST_BYTES)
    }

    /// A copy of sleep under a path of the test's own.
    fn program(&self, name: &str) -> PathBuf {
        let path = self.scratch.path().join(name);
        // By another process, see the executable's tests.
        assert!(
            Command::new("cp")
                .arg("-L")
                .arg("/bin/sleep")
                .arg(&path)
                .status()
                .unwrap()
                .success()
        );
        path
    }

    /// Starts `command`, moves it into `cgroup`, and returns what the kernel would have recorded.
    fn start(&mut self, command: &mut Command, cgroup: &str) -> Claim {
        let child = command.spawn().unwrap();
        let pid = child.id();
        self.child = Some(child);
        std::fs::write(
            self.mount.join(&cgroup[1..]).join("cgroup.procs"),
            pid.to_string(),
        )
        .unwrap();
        claim(pid, self.id(cgroup))
    }

    fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.end();
        for directory in self.made.iter().rev() {
            std::fs::remove_dir(directory).unwrap();
        }
    }
}

fn claim(pid: u32, cgroup_id: u64) -> Claim {
    let held = HeldProcess::open(pid).unwrap();
    let exe = std::fs::metadata(format!("/proc/{pid}/exe")).unwrap();
    Claim {
        workload: NUMBER,
        cgroup_id,
        netns_cookie: 1,
        tgid: Some(pid),
        tid: Some(pid),
        start_time: Some(held.start_ticks().unwrap() * 10_000_000 + 1),
        exec_id: Some(1),
        executable: Some(FileId {
            device: exe.dev(),
            inode: exe.ino(),
        }),
        uid: 0,
        gid: 0,
        comm: "sleep".into(),
        stamp: 0,
    }
}

fn sleep(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg("60");
    command
}

#[test]
fn a_running_process_of_a_unit_is_known_in_full() {
    let Some(mut bed) = Bed::make("full") else { return };
    let unit = bed.cgroup("/callgate-w.slice/a.service");
    let inner = bed.cgroup("/callgate-w.slice/a.service/inner");
    let invocation = "0123456789abcdef0123456789abcdef";
    xattr::set(
        bed.mount.join(&unit[1..]),
        "trusted.invocation_id",
        invocation.as_bytes(),
    )
    .unwrap();
    let program = bed.program("client");
    let claim = bed.start(&mut sleep(&program), &inner);
    let want = Want {
        exe: true,
        digest: true,
    };
    let identity = bed.resolver().resolve(&claim, want).unwrap();
    assert_eq!(identity.workload.as_str(), "w");
    assert_eq!(identity.cgroup.path.as_deref(), Some(inner.as_str()));
    assert_eq!(identity.unit.as_deref(), Some("a.service"));
    assert_eq!(identity.invocation.as_deref(), Some(invocation));
    assert_eq!(identity.user.as_deref(), Some("root"));
    assert_eq!(identity.process.map(|process| process.pid), claim.tgid);
    let executable = identity.executable.unwrap();
    assert_eq!(executable.path.as_ref(), Some(&program));
    let digest = Command::new("sha256sum").arg(&program).output().unwrap();
    let expected = String::from_utf8(digest.stdout).unwrap();
    assert_eq!(executable.sha256.unwrap().to_string(), expected[..64]);
}

#[test]
fn an_unknown_workload_has_no_identity() {
    let resolver = Resolver::new(Path::new("/nowhere"), "/p", [], 0);
    let claim = claim(std::process::id(), 1);
    let refused = resolver.resolve(&claim, WANT);
    assert!(matches!(
        refused,
        Err(ResolveError::UnknownWorkload { number: NUMBER })
    ));
}

#[test]
fn of_a_process_that_ended_the_kernels_facts_remain_and_no_others() {
    let Some(mut bed) = Bed::make("ended") else { return };
    let unit = bed.cgroup("/callgate-w.slice/a.service");
    let program = bed.program("client");
    let claim = bed.start(&mut sleep(&program), &unit);
    bed.end();
    let resolver = bed.resolver();
    let identity = resolver.resolve(&claim, WANT).unwrap();
    assert_eq!(identity.unit.as_deref(), Some("a.service"));
    assert_eq!(identity.process.map(|process| process.pid), claim.tgid);
    assert_eq!(identity.executable, None);
    assert!(matches!(
        resolver.recheck(&claim, WANT),
        Err(ExecutableError::Process(_))
    ));
}

#[test]
fn a_recycled_number_gives_no_facts_of_the_later_process() {
    let Some(mut bed) = Bed::make("recycled") else {
        return;
    };
    let unit = bed.cgroup("/callgate-w.slice/a.service");
    let program = bed.program("client");
    let mut claim = bed.start(&mut sleep(&program), &unit);
    claim.start_time = claim.start_time.map(|time| time - 10_000_000);
    let identity = bed.resolver().resolve(&claim, WANT).unwrap();
    assert_eq!(identity.executable, None);
    claim.start_time = None;
    let identity = bed.resolver().resolve(&claim, WANT).unwrap();
    assert_eq!((identity.executable, identity.process), (None, None));
}

#[test]
fn exec_between_connect_and_look_hides_the_executable() {
    let Some(mut bed) = Bed::make("exec") else { return };
    let unit = bed.cgroup("/callgate-w.slice/a.service");
    let allowed = bed.program("allowed");
    // The shell connects (its claim is taken when it says so), then becomes the allowed program.
    let mut command = Command::new("/bin/sh");
    let script = format!("echo ready; read go; exec {} 60", allowed.display());
    command
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let claim = bed.start(&mut command, &unit);
    let resolver = bed.resolver();
    let child = bed.child.as_mut().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert!(resolver.recheck(&claim, WANT).is_ok());
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"go\n").unwrap();
    let allowed = std::fs::metadata(&allowed).unwrap().ino();
    let became = || {
        std::fs::metadata(format!("/proc/{}/exe", claim.tgid.unwrap()))
            .unwrap()
            .ino()
            == allowed
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !became() {
        assert!(std::time::Instant::now() < deadline, "the shell did not exec");
        std::thread::yield_now();
    }
    assert!(matches!(
        resolver.recheck(&claim, WANT),
        Err(ExecutableError::Changed { .. })
    ));
    assert_eq!(resolver.resolve(&claim, WANT).unwrap().executable, None);
}

#[test]
fn a_process_that_left_its_cgroup_is_not_looked_at() {
    let Some(mut bed) = Bed::make("moved") else { return };
    let unit = bed.cgroup("/callgate-w.slice/a.service");
    let other = bed.cgroup("/callgate-w.slice/b.service");
    let program = bed.program("client");
    let claim = bed.start(&mut sleep(&program), &unit);
    std::fs::write(
        bed.mount.join(&other[1..]).join("cgroup.procs"),
        claim.tgid.unwrap().to_string(),
    )
    .unwrap();
    let resolver = bed.resolver();
    assert!(matches!(
        resolver.recheck(&claim, WANT),
        Err(ExecutableError::Moved { .. })
    ));
    let identity = resolver.resolve(&claim, WANT).unwrap();
    assert_eq!(identity.executable, None);
    assert_eq!(
        identity.unit.as_deref(),
        Some("a.service"),
        "the unit that it connected from"
    );
}

#[test]
fn a_unit_name_forged_in_a_delegated_subtree_counts_for_nothing() {
    let Some(mut bed) = Bed::make("forged") else {
        return;
    };
    bed.cgroup("/callgate-w.slice/a.service");
    let forged = bed.cgroup("/callgate-w.slice/a.service/b.service");
    // Even root's attribute on the forged directory is not asked.
    xattr::set(bed.mount.join(&forged[1..]), "trusted.invocation_id", &[b'f'; 32]).unwrap();
    let program = bed.program("client");
    let claim = bed.start(&mut sleep(&program), &forged);
    let identity = bed.resolver().resolve(&claim, WANT).unwrap();
    assert_eq!(identity.unit.as_deref(), Some("a.service"));
    assert_eq!(identity.invocation, None);
}

#[test]
fn a_slice_that_others_may_write_names_no_units() {
    let Some(mut bed) = Bed::make("writable") else {
        return;
    };
    let unit = bed.cgroup("/callgate-w.slice/a.service");
    let slice = bed.mount.join(format!("{}/callgate-w.slice", &bed.parent[1..]));
    std::os::unix::fs::chown(&slice, Some(65534), None).unwrap();
    let program = bed.program("client");
    let claim = bed.start(&mut sleep(&program), &unit);
    assert_eq!(bed.resolver().resolve(&claim, WANT).unwrap().unit, None);
}

#[test]
fn a_claim_holds_what_the_kernel_reported_and_no_more() {
    let mut origin = Origin::EMPTY;
    origin.workload = NUMBER;
    origin.tgid = 12;
    origin.comm[..4].copy_from_slice(b"a\xFFb\0");
    let claim = Claim::from(&origin);
    assert_eq!(claim.workload, NUMBER);
    assert_eq!(&*claim.comm, "a\u{FFFD}b");
    let absent = (claim.tgid, claim.start_time, claim.executable);
    assert_eq!(
        absent,
        (None, None, None),
        "what is not marked as present is absent"
    );
    let resolver = Resolver::new(Path::new("/nowhere"), "/p", [], 0);
    assert!(matches!(
        resolver.recheck(&claim, WANT),
        Err(ExecutableError::NotReported)
    ));
}
