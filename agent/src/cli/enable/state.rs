//! How the units that are enabled fare: whether each is held as `enable` meant it.

use std::path::Path;

use anyhow::Context as _;

use super::{host, settings, sockets};
use crate::config::Config;
use crate::enroll::reach::SERVICES;
use crate::enroll::unit::{self, Weight};
use crate::identity::WorkloadName;
use crate::policy::Policy;

/// A unit that is enabled.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct State {
    /// Its name.
    pub unit: String,
    /// The workload that it is to be a part of.
    pub workload: WorkloadName,
    /// Why it isn't, or not as it should be, each with what to do.
    pub faults: Vec<Fault>,
}

/// Something that is wrong with an enabled unit.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fault {
    /// What.
    pub what: String,
    /// What to do about it.
    pub fix: String,
    /// Whether its connections go past the agent; else it only does not work.
    pub open: bool,
}

/// All units that are enabled.
///
/// # Errors
/// If systemd can't be asked.
pub fn states(config: &Config, policy: Option<&Policy>) -> anyhow::Result<Vec<State>> {
    let enabled = host::enabled()?;
    enabled
        .into_iter()
        .filter_map(|(unit, slice)| Some((unit, WorkloadName::of_slice(&slice)?)))
        .map(|(unit, workload)| {
            let faults = faults(config, policy, &unit, &workload)?;
            Ok(State {
                unit,
                workload,
                faults,
            })
        })
        .collect()
}

fn faults(
    config: &Config,
    policy: Option<&Policy>,
    unit: &str,
    workload: &WorkloadName,
) -> anyhow::Result<Vec<Fault>> {
    let mut faults = Vec::new();
    let mut add = |open, what: String, fix: String| faults.push(Fault { what, fix, open });
    let facts = host::facts(unit)?;
    if facts.get("LoadState") != "loaded" {
        let why = host::why_not_loaded(&facts);
        add(
            false,
            format!("systemd has no such unit: {why}"),
            format!("callgate disable {unit}"),
        );
        return Ok(faults);
    }
    let (slice, held) = (facts.get("Slice"), workload.slice());
    if slice != held {
        let what = format!("systemd would start it in {slice}, not in {held}");
        let fix = format!("systemctl daemon-reload; if it stays so, callgate enable {unit} says why");
        add(true, what, fix);
    }
    let marker = config.runtime_dir.join("armed").join(workload.as_str());
    let sockets = facts
        .sockets
        .iter()
        .filter(|socket| unit::takes_connections(socket));
    let sockets: Vec<_> = sockets.map(|socket| socket.unit().to_owned()).collect();
    for socket in sockets::outside(&sockets, workload)? {
        let what = format!("{socket} makes its sockets outside of the workload");
        let fix = format!(
            "callgate enable {unit}; systemctl stop {} {socket}; systemctl start {socket}",
            host::pattern(unit)
        );
        add(true, what, fix);
    }
    if !marker.exists() {
        let what = format!("the agent does not hold {workload}: the unit does not start");
        add(
            false,
            what,
            "systemctl start callgate, or put the workload into the policy".to_owned(),
        );
    }
    match policy.map(|policy| policy.workload(workload)) {
        None => {}
        Some(None) => {
            let what = format!("the policy has no workload {workload}: it is held, and may do nothing");
            add(
                false,
                what,
                format!("put it into the policy, or callgate disable {unit}"),
            );
        }
        Some(Some(known)) => {
            let open = left_open(&host::file(unit))?;
            let setup = settings::setup(config, policy.context("a policy")?, known, &facts, &open)?;
            let findings = unit::plan(&facts, workload, &setup).findings;
            for finding in findings
                .into_iter()
                .filter(|finding| finding.weight == Weight::Refusal)
            {
                let what = format!("{}: {}", finding.setting, finding.text);
                add(true, what, format!("mend it, then callgate enable {unit}"));
            }
        }
    }
    for (instance, cgroup) in host::running(unit)? {
        // An instance that is enabled by itself goes before its template.
        let is_anothers = instance != unit && host::file(&instance).exists();
        if !is_anothers && !cgroup.contains(&format!("/{}/", workload.slice())) {
            let what = format!("{instance} runs as it was before it was enabled, in {cgroup}");
            add(true, what, format!("systemctl restart {instance}"));
        }
    }
    Ok(faults)
}

/// The services that the drop-in leaves in the unit's reach, since the operator said so.
fn left_open(file: &Path) -> anyhow::Result<Vec<std::path::PathBuf>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("can't read {}", file.display()))?;
    let closed = |path: &&&str| {
        text.lines()
            .any(|line| line.strip_prefix("InaccessiblePaths=-") == Some(**path))
    };
    let open = SERVICES.iter().filter(|path| !closed(path));
    Ok(open.map(std::path::PathBuf::from).collect())
}
