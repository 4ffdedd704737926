//! A part of a workload's cgroups that was handed to a user, as runtimes of containers have it: whatever the owner makes
//! of it, and wherever in it a thread is.

use std::fs;
use std::os::unix::fs::chown;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::cases::{EPERM, assert_redirected};
use super::world::World;
use crate::identity::NOBODY;

/// Where it connects from, in the order of the script.
const PLACES: [&str; 5] = ["owned", "child", "grandchild", "threaded", "main"];

pub(super) fn whatever_the_owner_of_cgroups_below_a_workload_makes_of_them_is_captured(
    world: &mut World,
) -> Result<()> {
    world.serve(1, "one")?;
    let owned = world.cgroup("one").join("owned");
    fs::create_dir(&owned)?;
    for file in [
        "",
        "cgroup.procs",
        "cgroup.threads",
        "cgroup.subtree_control",
        "cgroup.type",
    ] {
        chown(owned.join(file), Some(NOBODY), Some(NOBODY)).with_context(|| file.to_owned())?;
    }
    let outside = world.base.join("agent");
    let script = include_str!("delegated.py");
    let output = Command::new("/usr/bin/python3")
        .args(["-c", script])
        .args([&owned, &world.cgroup("one"), &world.cgroup("two"), &outside])
        .output()?;
    let said = String::from_utf8(output.stdout)?;
    ensure!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let lines: Vec<_> = said.lines().collect();
    let expected = PLACES.map(|place| {
        [
            format!("{place} 443 workload=1 dst=192.0.2.1:443"),
            format!("{place} 25 {EPERM}"),
        ]
    });
    assert_eq!(lines, expected.concat());
    let seen = world.take_seen();
    assert_eq!(seen.len(), PLACES.len());
    assert!(
        seen.iter()
            .flatten()
            .all(|origin| origin.workload() == 1 && origin.uid() == NOBODY)
    );
    assert!(seen.iter().all(Option::is_some), "{seen:?}");
    // What is left of it changes nothing for others.
    assert_redirected(world, &["tcp", "[2001:db8::1]:443"], "[2001:db8::1]:443")
}
