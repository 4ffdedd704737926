//! Whose identity is taken for whose.

use super::*;
use crate::identity::{Cgroup, Executable, WorkloadName};

fn origin() -> Origin {
    Origin {
        socket_cookie: 1,
        workload: 7,
        cgroup_id: 42,
        tgid: 4711,
        tid: 4711,
        start_time: 5,
        exec_id: 1,
        exe_dev: 2,
        exe_ino: 3,
        present: u32::MAX,
        ..Origin::EMPTY
    }
}

fn caller(executable: bool) -> Caller {
    Caller::from(Identity {
        workload: WorkloadName::parse("app").unwrap(),
        unit: None,
        invocation: None,
        container: None,
        cgroup: Cgroup { id: 42, path: None },
        uid: 0,
        gid: 0,
        user: None,
        process: None,
        executable: executable.then(|| Executable {
            path: Some("/usr/bin/app".into()),
            device: 2,
            inode: 3,
            sha256: None,
        }),
        netns_cookie: 0,
    })
}

#[tokio::test(start_paused = true)]
async fn a_process_that_connects_again_is_known_for_a_second() {
    let callers = Callers::default();
    callers.add(&origin(), &caller(true));
    let again = Origin {
        socket_cookie: 2,
        tid: 4712,
        stamp: 9,
        dst_port: 443,
        ..origin()
    };
    assert!(callers.get(&again).is_some());
    tokio::time::advance(FRESH).await;
    assert!(callers.get(&again).is_none());
}

#[tokio::test(start_paused = true)]
async fn another_caller_is_never_taken_for_one_that_is_known() {
    let callers = Callers::default();
    callers.add(&origin(), &caller(true));
    for other in [
        Origin {
            workload: 8,
            ..origin()
        },
        Origin {
            cgroup_id: 43,
            ..origin()
        },
        Origin {
            netns_cookie: 1,
            ..origin()
        },
        Origin {
            tgid: 4712,
            ..origin()
        },
        Origin {
            start_time: 6,
            ..origin()
        },
        Origin {
            exec_id: 2,
            ..origin()
        },
        Origin {
            exe_dev: 3,
            ..origin()
        },
        Origin {
            exe_ino: 4,
            ..origin()
        },
        Origin { uid: 1, ..origin() },
        Origin { gid: 1, ..origin() },
        Origin {
            comm: [b'x'; 16],
            ..origin()
        },
        Origin {
            present: 0,
            ..origin()
        },
    ] {
        assert!(callers.get(&other).is_none(), "{other:?}");
    }
    assert!(callers.get(&origin()).is_some());
    callers.clear();
    assert!(callers.get(&origin()).is_none());
}

#[tokio::test(start_paused = true)]
async fn who_is_not_fully_known_is_looked_at_again_and_the_number_is_bounded() {
    let callers = Callers::default();
    callers.add(&origin(), &caller(false));
    assert!(callers.get(&origin()).is_none());
    for tgid in 1..=2 * u32::try_from(MOST).unwrap() {
        callers.add(&Origin { tgid, ..origin() }, &caller(true));
    }
    assert_eq!(callers.0.borrow().len(), MOST);
}
