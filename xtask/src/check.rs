//! `cargo xtask check`: what the tools can say about the code without running it.

use std::process::Command;

use anyhow::Result;

use crate::cmd::{self, Outcome};
use crate::{setup, vm};

/// One tool; `None` for a command where the machine does not have it.
pub(crate) struct Check {
    pub(crate) name: &'static str,
    pub(crate) command: Option<Command>,
}

/// Runs all, and says which failed.
pub(crate) fn run() -> Result<Outcome> {
    setup::all()?;
    let failed = checks()
        .into_iter()
        .filter_map(passes)
        .filter(|passed| !passed)
        .count();
    Ok(if failed == 0 { Outcome::Good } else { Outcome::No })
}

/// All checks, in the order of their cost.
pub(crate) fn checks() -> Vec<Check> {
    let clippy = [
        "clippy",
        "--workspace",
        "--exclude",
        "callgate-ebpf",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    let doc = [
        "doc",
        "--workspace",
        "--exclude",
        "callgate-ebpf",
        "--no-deps",
        "--document-private-items",
    ];
    let mut doc = cmd::cargo(doc);
    doc.env("RUSTDOCFLAGS", "-D warnings");
    let deny = cmd::cargo(["deny", "--locked", "check", "bans", "licenses", "sources"]);
    let has = setup::has_component;
    vec![
        Check {
            name: "fmt",
            command: has("fmt", "rustfmt").then(|| cmd::cargo(["fmt", "--all", "--check"])),
        },
        Check {
            name: "clippy",
            command: has("clippy", "clippy").then(|| setup::prepare(cmd::cargo(clippy))),
        },
        Check {
            name: "clippy (kernel programs)",
            command: has("clippy", "clippy").then(vm::lint),
        },
        Check {
            name: "doc",
            command: Some(setup::prepare(doc)),
        },
        Check {
            name: "deny",
            command: has_deny().then_some(deny),
        },
    ]
}

fn has_deny() -> bool {
    let there = setup::cargo_deny();
    if let Err(error) = &there {
        eprintln!("check: {error:#}");
    }
    there.is_ok()
}

/// Whether it passes; `None`, with a word, if it can't be run here.
pub(crate) fn passes(check: Check) -> Option<bool> {
    let Some(command) = check.command else {
        eprintln!("check: cargo-{} is not installed, left out", check.name);
        return None;
    };
    match cmd::run(command) {
        Ok(()) => Some(true),
        Err(error) => {
            eprintln!("check: {}: {error:#}", check.name);
            Some(false)
        }
    }
}
