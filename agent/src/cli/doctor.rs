//! `callgate doctor`: what this host lacks, and the fix.
//!
//! Looks only; changes nothing. What the kernel's programs need is probed one by one where they are loaded,
//! and handed in as further checks.

mod clock;
mod commands;
mod managed;
mod probes;
mod settings;
mod units;

use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::Context;
use serde::Serialize;

use crate::admin::{self, client};
use crate::config::Config;
use crate::ebpf::{Feature, features, foreign};
use crate::supervisor::ground;

pub use commands::view;
pub use probes::host_checks;

pub(super) const LOOKED_AT: &str = "Changes nothing. It looks at the kernel and what it offers, its own rights, cgroups, the BPF file system, pid namespace, clock \
and swap; at settings, policy, user namespaces where ordinary users' commands need them, the worker's user, the agent's root, \
resolvers, room for records and others' BPF programs on the workloads' cgroups; at the roots that workloads trust and at each \
enabled unit, with what its settings switch off; at each workload's processes: whether they trust the agent, and sockets that \
were not made there; and at the running agent's programs and \
canaries. Run it as root: what it may not see it says.\n\n\
Exit codes: 0 every line passes, 1 some warn: callgate runs, with the loss that each names, 2 wrong usage, or settings with \
errors, 3 some fail: callgate can't run, or does not hold all that it should. With --json, `ok` is true with code 0 alone.";

/// What the command line gives.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Args {
    /// Print one JSON document instead of a table
    #[arg(long)]
    pub json: bool,
}

/// How one check went.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Pass,
    /// It works, with the loss that the text names.
    Warn,
    /// callgate can't run like this.
    Fail,
}

/// One fact about this host.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Check {
    /// What was looked at; stable.
    pub name: &'static str,
    /// How it went.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What to do about it; empty if nothing.
    pub fix: String,
}

impl Check {
    /// All is well.
    #[must_use]
    pub fn pass(name: &'static str, found: impl Into<String>) -> Self {
        Self::new(name, Status::Pass, found, "")
    }

    /// It works, but not fully.
    #[must_use]
    pub fn warn(name: &'static str, found: impl Into<String>, fix: &str) -> Self {
        Self::new(name, Status::Warn, found, fix)
    }

    /// It doesn't work.
    #[must_use]
    pub fn fail(name: &'static str, found: impl Into<String>, fix: &str) -> Self {
        Self::new(name, Status::Fail, found, fix)
    }

    fn new(name: &'static str, status: Status, found: impl Into<String>, fix: &str) -> Self {
        Self {
            name,
            status,
            found: found.into(),
            fix: fix.to_owned(),
        }
    }
}

/// Prints what [`host_checks`] and `kernel_checks` found. The code is 0 if callgate can run, 1 if it can with a
/// loss, 3 if it can't.
///
/// # Errors
/// If standard output can't be written.
pub fn run(args: Args, config: &Config, kernel_checks: Vec<Check>) -> anyhow::Result<ExitCode> {
    let mut checks = host_checks(&config.bpffs_dir);
    checks.extend(kernel_checks);
    checks.extend(settings::checks(config));
    checks.extend(units::checks(config));
    checks.extend(managed::checks(config));
    checks.extend(running_agent(&config.admin_socket));
    let text = if args.json { json(&checks)? } else { table(&checks) };
    writeln!(io::stdout().lock(), "{text}").context("can't write to standard output")?;
    Ok(ExitCode::from(code(&checks)))
}

/// Whether the agent that runs here still has its programs in place, and they do what they should; nothing where none
/// runs.
fn running_agent(socket: &Path) -> Vec<Check> {
    const NAME: &str = "perimeter";
    match client::ask::<admin::Status>(socket, "GET", "/v1/status", Vec::new()) {
        Ok(status) => {
            let of_roots = status.trust_error.map(|why| {
                let found =
                    format!("the host's roots have changed, and the agent has those from before: {why}");
                Check::warn(
                    "roots renewed",
                    found,
                    "mend what the agent's log says; it tries every two seconds",
                )
            });
            let always = [
                perimeter(NAME, status.perimeter_intact),
                canaries(&status.canaries),
            ];
            always.into_iter().chain(of_roots).collect()
        }
        Err(client::Error::Unreachable { .. }) => Vec::new(),
        Err(error) => vec![Check::warn(
            NAME,
            error.to_string(),
            "ask as root, with the version that runs",
        )],
    }
}

fn perimeter(name: &'static str, intact: bool) -> Check {
    if intact {
        return Check::pass(name, "the running agent's programs are in place");
    }
    Check::fail(
        name,
        "programs of the running agent were taken away and can't be put back",
        "remove what stands in the way (the agent's log says what), or restart the agent",
    )
}

fn canaries(found: &[admin::CanaryStatus]) -> Check {
    const NAME: &str = "canaries";
    if found.is_empty() {
        return Check::pass(NAME, "no workload's canary failed");
    }
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    Check::fail(
        NAME,
        found.join("; "),
        "the agent puts back what it can and tries again; if this stays, see who else loads BPF programs or changes its maps (`bpftool cgroup tree`), and restart the agent",
    )
}

/// What this kernel offers, as far as can be told from outside a running agent. That takes the right to load a
/// program: without it nothing is known, and nothing is claimed.
#[must_use]
pub fn kernel_checks() -> Vec<Check> {
    if ground::missing().is_some() {
        let found = "not looked at: only who may load programs can";
        return vec![Check::fail(
            "kernel features",
            found,
            "run `callgate doctor` as root",
        )];
    }
    features::probe()
        .into_iter()
        // The host's checks have looked at the file that this feature is.
        .filter(|(feature, _)| *feature != Feature::TypeInfo)
        .map(|(feature, present)| of_feature(feature, present))
        .chain([policies(foreign::can_cut_off(), || is_loadable(foreign::MODULE))])
        .collect()
}

/// What a module is for. callgate.service has it loaded before the agent starts, which may load none; an agent that is
/// started by hand has the kernel do it.
fn policies(can_cut_off: io::Result<bool>, can_be_loaded: impl Fn() -> bool) -> Check {
    const NAME: &str = "IPsec policies";
    const FIX: &str = "install that module of this kernel (linux-modules-extra on some distributions), or use one with CONFIG_XFRM_USER, then restart the agent";
    let module = foreign::MODULE;
    match can_cut_off {
        Ok(true) => Check::pass(NAME, "the kernel reads them"),
        Ok(false) if can_be_loaded() => Check::pass(
            NAME,
            format!("the module {module} is not loaded yet, and is when the agent starts"),
        ),
        Ok(false) => {
            let found = format!(
                "the kernel has no module {module}: a datagram socket of IPv4 that is handed to a managed process can't be cut off"
            );
            Check::warn(NAME, found, FIX)
        }
        Err(error) => Check::warn(NAME, format!("can't be tried: {error}"), FIX),
    }
}

/// Whether modprobe(8) would find a module; it loads nothing for that.
fn is_loadable(module: &str) -> bool {
    let mut tried = Command::new("modprobe");
    tried
        .args(["--dry-run", "--quiet", "--use-blacklist", module])
        .stdin(Stdio::null());
    tried.output().is_ok_and(|output| output.status.success())
}

fn of_feature(feature: Feature, present: bool) -> Check {
    if present {
        return Check::pass(feature.name(), "present");
    }
    let fix = format!("callgate needs it {}; {}", feature.why(), feature.fix());
    Check::fail(feature.name(), "missing", &fix)
}

fn code(checks: &[Check]) -> u8 {
    match checks.iter().map(|check| check.status).max() {
        None | Some(Status::Pass) => 0,
        Some(Status::Warn) => 1,
        Some(Status::Fail) => 3,
    }
}

fn json(checks: &[Check]) -> anyhow::Result<String> {
    let document = serde_json::json!({ "ok": code(checks) == 0, "checks": checks });
    serde_json::to_string_pretty(&document).context("can't write JSON")
}

/// By hand, not by a table: one long line must not widen all the others.
fn table(checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let mut table = String::new();
    for check in checks {
        let status = match check.status {
            Status::Pass => "pass",
            Status::Warn => "warn",
            Status::Fail => "FAIL",
        };
        table += &format!("{status:<4} {:<width$}  {}\n", check.name, check.found);
        if !check.fix.is_empty() {
            table += &format!("{:<4} {:<width$}  -> {}\n", "", "", check.fix);
        }
    }
    let summary = match code(checks) {
        0 => "callgate can run here.",
        1 => "callgate can run here, with the warnings above.",
        _ => {
            "callgate can't run here, or does not hold all that it should, until what fails above is put right."
        }
    };
    format!("{table}\n{summary}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checks(worst: Check) -> Vec<Check> {
        vec![Check::pass("kernel", "6.12"), worst]
    }

    #[test]
    fn the_exit_code_is_that_of_the_worst_check() {
        assert_eq!(code(&checks(Check::pass("btf", "there"))), 0);
        assert_eq!(code(&checks(Check::warn("btf", "odd", "look"))), 1);
        assert_eq!(code(&checks(Check::fail("btf", "none", "get one"))), 3);
    }

    #[test]
    fn every_trouble_comes_with_its_fix() {
        let text = table(&checks(Check::fail("btf", "none", "get one")));
        assert!(text.contains("FAIL") && text.contains("-> get one"), "{text}");
        for check in host_checks(&Config::default().bpffs_dir) {
            assert_eq!(check.fix.is_empty(), check.status == Status::Pass, "{check:?}");
            assert!(!check.found.is_empty(), "{check:?}");
        }
    }

    #[test]
    fn each_failed_canary_is_told() {
        let canary = |workload: &str, netns| admin::CanaryStatus {
            workload: workload.to_owned(),
            netns,
            finding: "refused".to_owned(),
        };
        assert_eq!(canaries(&[]).status, Status::Pass);
        let check = canaries(&[canary("billing", None), canary("ci", Some(7))]);
        assert_eq!(check.status, Status::Fail);
        assert_eq!(check.found, "billing: refused; ci in net:[7]: refused");
    }

    #[test]
    fn a_missing_feature_fails_with_what_run_says_of_it() {
        for feature in Feature::ALL {
            let check = of_feature(*feature, false);
            let said = crate::ebpf::Error::Missing { feature: *feature }.to_string();
            assert_eq!(code(&checks(check.clone())), 3);
            for part in [check.name, feature.why(), feature.fix()] {
                assert!(said.contains(part), "{part} is not in {said}");
            }
            assert!(check.fix.contains(feature.fix()), "{check:?}");
        }
    }

    #[test]
    fn a_module_that_is_to_be_had_is_no_trouble_and_one_that_is_not_is_named() {
        let of = |there, loadable| policies(Ok(there), move || loadable).status;
        assert_eq!(of(true, false), Status::Pass);
        assert_eq!(of(false, true), Status::Pass);
        assert_eq!(of(false, false), Status::Warn);
    }

    #[test]
    fn the_json_form_names_status_and_fix() {
        let text = json(&checks(Check::warn("btf", "odd", "look"))).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["ok"], false);
        assert_eq!(value["checks"][1]["status"], "warn");
        assert_eq!(value["checks"][1]["fix"], "look");
    }
}
