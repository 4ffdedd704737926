//! The text of the drop-in.
//!
//! Settings that systemd would add to the unit's own (capabilities, address families, ranges) are reset first, and what
//! the unit had of them is carried over as far as it may keep it: a unit never gets more than it had.

use std::fmt::Write as _;
use std::path::Path;

use caps::Capability;

use super::{Facts, Setup};
use crate::enroll::reach::{CREDENTIAL_STORES, KEPT, SERVICES};
use crate::enroll::trust::JAVA_OPTIONS;
use crate::identity::WorkloadName;

/// The socket families that the kernel programs see, and two that stay on the host: netlink is how libc lists addresses.
const FAMILIES: &[&str] = &["AF_INET", "AF_INET6", "AF_NETLINK", "AF_UNIX"];

/// Calls for which libraries have a way without. io_uring makes sockets out of a filter's sight; a key request has the
/// kernel start a helper as root; clone3 makes root's children in cgroups that are read-only to it, and before systemd 251
/// RestrictNamespaces leaves it there.
const ABSENT: &[&str] = &[
    "add_key",
    "clone3",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "keyctl",
    "request_key",
];

/// Calls that change mounts, enter namespaces, load programs or modules, or reach files by handle.
const REFUSED: &[&str] = &[
    "bpf",
    "delete_module",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "init_module",
    "kexec_file_load",
    "kexec_load",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pivot_root",
    "setns",
    "umount2",
];

/// The settings that hold the unit: one that a later drop-in sets undoes ours.
pub(super) const HOLDING: &[&str] = &[
    "AmbientCapabilities",
    "AssertPathExists",
    "CapabilityBoundingSet",
    "Delegate",
    "IPAddressAllow",
    "IPAddressDeny",
    "NoNewPrivileges",
    "ProtectControlGroups",
    "ProtectKernelTunables",
    "RestrictAddressFamilies",
    "RestrictNamespaces",
    "Slice",
    "SystemCallArchitectures",
];

/// The drop-in that makes the unit a part of `workload`.
#[must_use]
pub fn text(facts: &Facts, workload: &WorkloadName, setup: &Setup) -> String {
    let accepted = if setup.allow_privileged { ACCEPTED } else { "" };
    head(facts, workload, setup) + accepted + &hold(facts, setup)
}

const ACCEPTED: &str = "# Its commands with full privileges are accepted (--allow-privileged).\n";

/// Whether the drop-in with this text was written for an operator who accepts those.
#[must_use]
pub fn accepts_privileged(text: &str) -> bool {
    text.contains(ACCEPTED)
}

/// What its processes trust, and what they can't do.
pub(super) fn hold(facts: &Facts, setup: &Setup) -> String {
    let lines = [
        trust(facts, setup),
        confinement(facts),
        files(setup),
        ranges(facts, setup),
    ];
    lines.concat()
}

fn head(facts: &Facts, workload: &WorkloadName, setup: &Setup) -> String {
    format!(
        "# Makes {unit} a part of the workload {workload}. Written by `callgate enable`, removed by `callgate disable`.\n\
         [Unit]\n\
         # Not Requires=: a restart of the agent must not restart this unit.\n\
         Wants=callgate.service\n\
         After=callgate.service\n\
         # There while the kernel holds the workload. Without it the unit does not start.\n\
         AssertPathExists={marker}\n\
         \n\
         [Service]\n\
         Slice={slice}\n\
         Delegate=no\n",
        unit = facts.unit(),
        marker = plain(&setup.marker),
        slice = workload.slice(),
    )
}

fn trust(facts: &Facts, setup: &Setup) -> String {
    let mut text = "\n# The host's roots and the agent's, for this unit alone.\n".to_owned();
    let own = quoted(&setup.trust.to_string_lossy());
    line(&mut text, "BindReadOnlyPaths", &own);
    for (from, to) in &setup.over {
        let pair = format!("{}:{}", plain(from), plain(to));
        line(&mut text, "BindReadOnlyPaths", &quoted_raw(&pair));
    }
    for (name, value) in &setup.variables {
        let value = match java_options(facts).filter(|_| name == JAVA_OPTIONS) {
            Some(before) => format!("{before} {value}"),
            None => value.clone(),
        };
        line(&mut text, "Environment", &quoted(&format!("{name}={value}")));
    }
    text
}

/// What the unit sets itself, without ours from an earlier time: of two options that say the same, Java takes the last.
fn java_options(facts: &Facts) -> Option<String> {
    let mut set = facts.entries("Environment");
    let own = set.find_map(|entry| {
        let value = entry.strip_prefix(JAVA_OPTIONS)?.strip_prefix('=')?;
        Some(value.to_owned())
    })?;
    let kept = own
        .split_ascii_whitespace()
        .filter(|option| !option.starts_with("-Djavax.net.ssl.trustStore"));
    Some(kept.collect::<Vec<_>>().join(" ")).filter(|kept| !kept.is_empty())
}

fn confinement(facts: &Facts) -> String {
    let mut text =
        "\n# Ways that the kernel programs don't see, and ways out of the cgroup and of the mounts.\n"
            .to_owned();
    reset(&mut text, "RestrictAddressFamilies", &families(facts));
    line(&mut text, "SystemCallArchitectures", "native");
    reset(
        &mut text,
        "CapabilityBoundingSet",
        &capabilities(facts, "CapabilityBoundingSet"),
    );
    reset(
        &mut text,
        "AmbientCapabilities",
        &capabilities(facts, "AmbientCapabilities"),
    );
    for setting in ["NoNewPrivileges", "ProtectControlGroups", "ProtectKernelTunables"] {
        line(&mut text, setting, "yes");
    }
    line(&mut text, "RestrictNamespaces", "~cgroup mnt");
    let calls = |calls: &[&str], error: &str| {
        let named: Vec<_> = calls.iter().map(|call| format!("{call}:{error}")).collect();
        format!("~{}", named.join(" "))
    };
    line(&mut text, "SystemCallFilter", &calls(ABSENT, "ENOSYS"));
    line(&mut text, "SystemCallFilter", &calls(REFUSED, "EPERM"));
    // EPERM may be ours from an earlier time.
    let unset = matches!(facts.get("SystemCallErrorNumber"), "" | "EPERM" | "1");
    if is_allow_list(facts.get("SystemCallFilter")) && unset {
        text.push_str("# What is taken from the unit's own list fails with an error instead of ending it.\n");
        line(&mut text, "SystemCallErrorNumber", "EPERM");
    }
    text
}

fn files(setup: &Setup) -> String {
    let mut text =
        "\n# Services that would act for it outside of the workload, and what belongs to the agent.\n"
            .to_owned();
    let services = SERVICES.iter().chain(CREDENTIAL_STORES);
    for path in services.filter(|path| !Facts::keeps(setup, path)) {
        line(
            &mut text,
            "InaccessiblePaths",
            &format!("-{}", plain(Path::new(path))),
        );
    }
    for path in &setup.hidden {
        line(&mut text, "InaccessiblePaths", &optional(path));
    }
    for path in &setup.fixed {
        line(&mut text, "ReadOnlyPaths", &optional(path));
    }
    text
}

/// What holds also while the kernel programs are gone. It is for answers too, so it would keep callers from a unit that
/// takes connections.
fn ranges(facts: &Facts, setup: &Setup) -> String {
    let mut text = "\n".to_owned();
    if setup.listens() {
        text.push_str("# No IPAddressDeny=any: the workload takes connections from outside.\n");
        if facts.denies_ranges() {
            line(&mut text, "IPAddressAllow", "localhost");
        }
        return text;
    }
    text.push_str("# Holds also while the kernel programs are gone: this host, and the `direct` rules.\n");
    let direct: Vec<_> = setup.direct.iter().map(ToString::to_string).collect();
    line(&mut text, "IPAddressDeny", "any");
    reset(
        &mut text,
        "IPAddressAllow",
        &["localhost".to_owned()]
            .into_iter()
            .chain(direct)
            .collect::<Vec<_>>()
            .join(" "),
    );
    text
}

/// Those of the unit's that may stay; all of ours if it names none.
fn families(facts: &Facts) -> String {
    let shown = facts.get("RestrictAddressFamilies");
    let (denied, list) = match shown.strip_prefix('~') {
        Some(list) => (true, list),
        None => (false, shown),
    };
    let named: Vec<&str> = list.split_ascii_whitespace().collect();
    // An empty list that is shown is `none`.
    let unset = !facts.shows("RestrictAddressFamilies");
    let stays = |family: &&&str| unset || named.contains(*family) != denied;
    let kept: Vec<&str> = FAMILIES.iter().filter(stays).copied().collect();
    if kept.is_empty() {
        "none".to_owned()
    } else {
        kept.join(" ")
    }
}

/// Those of the unit's that may stay.
fn capabilities(facts: &Facts, property: &str) -> String {
    let held: Vec<String> = facts.words(property).map(str::to_ascii_uppercase).collect();
    let kept = KEPT.iter().map(Capability::to_string);
    kept.filter(|name| held.contains(name))
        .collect::<Vec<_>>()
        .join(" ")
}

/// `systemctl show` puts a '~' before a list of what is denied.
pub(super) fn is_allow_list(shown: &str) -> bool {
    !shown.is_empty() && !shown.starts_with('~')
}

fn reset(text: &mut String, setting: &str, value: &str) {
    line(text, setting, "");
    if !value.is_empty() {
        line(text, setting, value);
    }
}

/// A line break in a path would be a setting of its own; such a path is refused (`findings`), and named by nothing if
/// the operator insists.
fn line(text: &mut String, setting: &str, value: &str) {
    let value: String = value.chars().filter(|letter| !letter.is_control()).collect();
    // Writing to a String can't fail.
    writeln!(text, "{setting}={value}").ok();
}

/// systemd expands '%' in nearly every setting.
pub(super) fn plain(path: &Path) -> String {
    path.to_string_lossy().replace('%', "%%")
}

pub(super) fn optional(path: &Path) -> String {
    quoted_raw(&format!("-{}", plain(path)))
}

fn quoted(value: &str) -> String {
    quoted_raw(&value.replace('%', "%%"))
}

/// systemd.syntax(7): quotes only where they are needed, for whoever reads the file.
fn quoted_raw(value: &str) -> String {
    if value.bytes().any(|b| b" \t\"'\\".contains(&b)) {
        format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""))
    } else {
        value.to_owned()
    }
}
