//! An upgrade that fails half-way, on a booted Debian: nothing is let out or goes unrecorded, dpkg and the journal say what
//! to do, and the version before takes all up again.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use callgate_common::abi;
use harness::{Bed, bed, require, wait};

use super::installed::{LISTENERS, call, main_pid, managed, settled, start};
use super::{STREAMS, Streams, check_killed, of_streams, set_version};
use crate::load::{Load, check_records};

/// The version to upgrade to, with this in place of its binary.
fn with_binary(bed: &Bed, script: &str) -> Result<PathBuf> {
    let tree = bed.world().dir().join("broken");
    let package = tree.with_extension("deb");
    let deb = |args: &[&Path]| -> Result<()> {
        ensure!(
            Command::new("dpkg-deb").args(args).status()?.success(),
            "dpkg-deb"
        );
        Ok(())
    };
    deb(&["--raw-extract".as_ref(), &bed::next_package()?, &tree])?;
    let binary = tree.join("usr/bin/callgate");
    fs::write(&binary, script)?;
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755))?;
    deb(&["-Znone".as_ref(), "--build".as_ref(), &tree, &package])?;
    Ok(package)
}

/// Installs a package and gives back what dpkg shows.
fn dpkg(bed: &Bed, package: &Path) -> Result<String> {
    let inside = "/var/cache/tried.deb";
    fs::copy(package, bed.path(inside))?;
    let shown = bed.run(["dpkg", "--force-confnew", "--install", inside])?;
    ensure!(shown.status.success(), "{shown:?}");
    Ok(shown.stderr)
}

/// What the journal has of the agent, once these words are in it.
fn says(bed: &Bed, words: &str) -> Result<()> {
    let mut journal = String::new();
    let said = wait::until(words, wait::PATIENCE, || {
        journal = bed.journal("callgate").ok()?;
        journal.contains(words).then_some(())
    });
    said.map_err(|error| error.context(journal))
}

/// Upgrades a loaded agent to what does not run, sees that nobody gets out and what the operator is told, and goes back.
fn fails_and_goes_back(
    upgrade: impl FnOnce(&Bed) -> Result<String>,
    back: impl FnOnce(&Bed) -> Result<()>,
) -> Result<()> {
    let bed = start()?;
    let listeners = bed.sh(LISTENERS)?.ok()?;
    let load = Load::start(bed.world(), |args| bed.command(managed(args)), 4, 4)?;
    let streams = Streams::start(|args| bed.command(managed(args)))?;
    let shown = upgrade(&bed)?;
    assert!(shown.contains("callgate: the agent does not run"), "{shown}");
    assert!(shown.contains("install it again to go back"), "{shown}");
    assert_ne!(bed.property("callgate", "ActiveState")?, "active");
    streams.end_well()?;
    load.is_refused()?;
    back(&bed)?;
    load.goes_on()?;
    assert_eq!(bed.sh(LISTENERS)?.ok()?, listeners);
    let said = load.end()?;
    let (records, arrived) = settled(&bed)?;
    check_records(&records, &arrived);
    check_killed(&said, &records)?;
    assert_eq!(of_streams(&records), vec!["completed"; STREAMS]);
    Ok(())
}

#[test]
fn an_upgrade_to_a_binary_that_does_not_run_opens_nothing_and_the_old_one_takes_all_up_again() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    fails_and_goes_back(
        |bed| {
            let package = with_binary(bed, "#!/bin/sh\necho 'no such library' >&2\nexit 127\n")?;
            let shown = dpkg(bed, &package)?;
            says(bed, "no such library")?;
            Ok(shown)
        },
        |bed| bed.install(&bed::package()?),
    )
}

#[test]
fn an_upgrade_to_another_layout_of_the_pins_opens_nothing_and_the_old_one_takes_all_up_again() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let pins = |bed: &Bed| bed.world().dir().join("bpf/callgate");
    fails_and_goes_back(
        |bed| {
            // As if they were of the version before, which has another layout.
            set_version(&pins(bed), 99)?;
            let shown = dpkg(bed, &bed::next_package()?)?;
            says(bed, "callgate release --all")?;
            Ok(shown)
        },
        |bed| {
            set_version(&pins(bed), abi::VERSION)?;
            bed.install(&bed::package()?)
        },
    )
}

#[test]
fn an_upgrade_that_does_not_take_the_settings_says_where_and_runs_when_they_are_mended() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = start()?;
    let before = main_pid(&bed)?;
    let settings = "/etc/callgate/callgate.toml";
    let good = fs::read_to_string(bed.path(settings))?;
    bed.write(settings, &format!("{good}\n[limits]\nno_such_limit = 1\n"))?;
    // Without a word of what to do with the settings, which dpkg then leaves alone.
    let inside = "/var/cache/next.deb";
    fs::copy(bed::next_package()?, bed.path(inside))?;
    let shown = bed.run(["dpkg", "--force-confold", "--install", inside])?;
    ensure!(shown.status.success(), "{shown:?}");
    assert!(
        shown.stderr.contains("callgate: the agent does not run"),
        "{shown:?}"
    );
    says(&bed, "no_such_limit")?;
    says(&bed, settings)?;
    bed.write(settings, &good)?;
    wait::until("the new agent", wait::PATIENCE, || {
        let active = bed.property("callgate", "ActiveState").ok()? == "active";
        (active && main_pid(&bed).ok()? != before).then_some(())
    })?;
    call(&bed, "/after")
}
