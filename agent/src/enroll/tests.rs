//! Real cgroups below a parent of each test's own; without root these tests say so and stop.

use std::process::{Child, Command};

use super::*;
use crate::identity::process::HeldProcess;

/// A set of workloads below a parent that is named after the test; removed with the processes in it.
struct Bed {
    workloads: Workloads,
    runtime: tempfile::TempDir,
    children: Vec<Child>,
}

impl Bed {
    fn make(test: &str) -> Option<Self> {
        if crate::tests::lacks_root() {
            return None;
        }
        let runtime = tempfile::tempdir().unwrap();
        let parent = format!("callgate-test-{}-{test}", std::process::id());
        let workloads = Workloads::open(Mount::find().unwrap(), &parent, runtime.path()).unwrap();
        Some(Self {
            workloads,
            runtime,
            children: Vec::new(),
        })
    }

    fn process(&mut self) -> HeldProcess {
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let held = HeldProcess::open(child.id()).unwrap();
        self.children.push(child);
        held
    }

    fn end_processes(&mut self) {
        for mut child in self.children.drain(..) {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.end_processes();
        let names: Vec<WorkloadName> = self.workloads.known.keys().cloned().collect();
        for name in names {
            assert_eq!(self.workloads.release(&name).unwrap(), Released::Removed);
        }
        assert_eq!(self.workloads.remove_parent().unwrap(), Released::Removed);
    }
}

fn name(text: &str) -> WorkloadName {
    WorkloadName::parse(text).unwrap()
}

#[test]
fn workloads_are_numbered_and_adding_one_again_changes_nothing() {
    let Some(mut bed) = Bed::make("number") else {
        return;
    };
    let first = bed.workloads.add(&name("a")).unwrap();
    let (number, id) = (first.number(), first.id());
    assert_eq!(bed.workloads.add(&name("b-c")).unwrap().number(), number + 1);
    let again = bed.workloads.add(&name("a")).unwrap();
    assert_eq!((again.number(), again.id()), (number, id));
    let path = bed.workloads.get(&name("b-c")).unwrap().path().to_owned();
    assert!(path.ends_with("/callgate-b\\x2dc.slice"), "{path}");
    assert_eq!(
        fs::metadata(bed.workloads.mount().file(&path)).unwrap().mode() & 0o777,
        0o755
    );
}

#[test]
fn a_placed_process_is_in_a_cgroup_of_its_own_which_goes_when_it_ends() {
    let Some(mut bed) = Bed::make("place") else { return };
    let workload = name("w");
    bed.workloads.add(&workload).unwrap();
    let process = bed.process();
    let path = bed.workloads.place(&process, &workload, "1").unwrap();
    assert_eq!(process.cgroup().unwrap().as_deref(), Some(path.as_str()));
    assert!(
        bed.workloads.place(&process, &workload, "1").is_err(),
        "the id is taken"
    );
    bed.workloads.sweep(&workload).unwrap();
    assert!(bed.workloads.mount().file(&path).exists());
    bed.end_processes();
    bed.workloads.sweep(&workload).unwrap();
    assert!(!bed.workloads.mount().file(&path).exists());
}

#[test]
fn what_commands_of_an_earlier_run_left_is_removed_and_nothing_of_others() {
    let Some(mut bed) = Bed::make("left") else { return };
    let workload = name("w");
    let slice = bed.workloads.add(&workload).unwrap().path().to_owned();
    let slice = bed.workloads.mount().file(&slice);
    let [left, other] = ["exec-1", "other"].map(|name| slice.join(name));
    fs::create_dir(&left).unwrap();
    fs::create_dir(&other).unwrap();
    bed.workloads.sweep(&workload).unwrap();
    assert!(!left.exists() && other.exists());
    drop(bed.workloads.room(&workload, "2").unwrap());
    assert!(slice.join("exec-2").exists());
    bed.workloads.sweep(&workload).unwrap();
    assert!(!slice.join("exec-2").exists());
    fs::remove_dir(other).unwrap();
}

#[test]
fn a_process_that_ended_is_not_placed_and_leaves_nothing() {
    let Some(mut bed) = Bed::make("ended") else { return };
    let workload = name("w");
    let slice = bed.workloads.add(&workload).unwrap().path().to_owned();
    let process = bed.process();
    bed.end_processes();
    assert!(bed.workloads.place(&process, &workload, "1").is_err());
    assert!(!bed.workloads.mount().file(&slice).join("exec-1").exists());
    assert!(matches!(
        bed.workloads.place(&process, &workload, "../x"),
        Err(Error::ExecId { .. })
    ));
    assert!(matches!(
        bed.workloads.place(&process, &name("other"), "1"),
        Err(Error::Unknown { .. })
    ));
}

#[test]
fn a_busy_workload_stays_when_it_is_released() {
    let Some(mut bed) = Bed::make("busy") else { return };
    let workload = name("w");
    bed.workloads.add(&workload).unwrap();
    let process = bed.process();
    bed.workloads.place(&process, &workload, "1").unwrap();
    assert_eq!(bed.workloads.release(&workload).unwrap(), Released::Busy);
    bed.end_processes();
    bed.workloads.add(&workload).unwrap();
}

#[test]
fn the_marker_stands_while_the_workload_is_armed() {
    let Some(mut bed) = Bed::make("marker") else {
        return;
    };
    let marker = bed.runtime.path().join("armed/w");
    assert!(bed.workloads.arm(&name("w")).is_err(), "not a workload yet");
    bed.workloads.add(&name("w")).unwrap();
    bed.workloads.arm(&name("w")).unwrap();
    assert!(marker.exists());
    bed.workloads.disarm(&name("w")).unwrap();
    bed.workloads.disarm(&name("w")).unwrap();
    assert!(!marker.exists());
}

#[test]
fn parents_are_paths_below_the_mount() {
    assert_eq!(normal_parent("callgate.slice").unwrap(), "/callgate.slice");
    assert_eq!(normal_parent("/a/b/").unwrap(), "/a/b");
    for bad in ["", "/", "..", "a/../b", "a//b", "./a", "a\nb"] {
        assert!(matches!(normal_parent(bad), Err(Error::Parent { .. })), "{bad:?}");
    }
}

#[test]
fn the_agent_refuses_to_capture_itself() {
    for own in ["/callgate.slice", "/callgate.slice/callgate-x.slice/a.service"] {
        let refused = refuse_inside(own.to_owned(), "/callgate.slice");
        assert!(matches!(refused, Err(Error::InsideWorkload { .. })), "{own}");
    }
    for own in ["/", "/callgate.slices", "/system.slice/callgate.service"] {
        assert!(refuse_inside(own.to_owned(), "/callgate.slice").is_ok(), "{own}");
    }
}

#[test]
fn what_lies_below_the_parent_is_found_again_under_its_name() {
    let Some(mut bed) = Bed::make("present") else {
        return;
    };
    let id = bed.workloads.add(&name("two-words_x")).unwrap().id();
    let parent = bed.workloads.mount.file(&bed.workloads.parent);
    fs::create_dir(parent.join("callgate-Not.slice")).unwrap();
    fs::create_dir(parent.join("other.slice")).unwrap();
    let found = bed.workloads.present();
    fs::remove_dir(parent.join("callgate-Not.slice")).unwrap();
    fs::remove_dir(parent.join("other.slice")).unwrap();
    assert_eq!(found.unwrap(), [(name("two-words_x"), id)]);
}
