//! How the units that are enabled fare: whether each is held as `enable` meant it.

use std::path::Path;

use anyhow::Context as _;

use super::settings::Accepted;
use super::{host, settings, sockets};
use crate::config::Config;
use crate::enroll::reach::SERVICES;
use crate::enroll::unit::{self, Facts, Weight};
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
    /// What holds it less tightly, or will not work, by its own settings.
    pub warnings: Vec<Fault>,
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
    let named = enabled
        .into_iter()
        .filter_map(|(unit, slice)| Some((unit, WorkloadName::of_slice(&slice)?)));
    named
        .map(|(unit, workload)| look(config, policy, unit, workload))
        .collect()
}

/// The units whose drop-ins are not what `enable` would write now, each with what to do: what the drop-in hides, and
/// where it lets the unit go, follows the policy.
///
/// # Errors
/// If systemd can't be asked.
pub fn stale(config: &Config, policy: &Policy) -> anyhow::Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for state in states(config, Some(policy))? {
        let stale = state.faults.into_iter().find(|fault| fault.what == STALE);
        found.extend(stale.map(|fault| (state.unit, fault.fix)));
    }
    Ok(found)
}

const STALE: &str = "its drop-in was made for another policy, other settings or by another version";

fn look(
    config: &Config,
    policy: Option<&Policy>,
    unit: String,
    workload: WorkloadName,
) -> anyhow::Result<State> {
    let mut state = State {
        unit,
        workload,
        faults: Vec::new(),
        warnings: Vec::new(),
    };
    let facts = host::facts(&state.unit)?;
    if facts.get("LoadState") != "loaded" {
        let why = host::why_not_loaded(&facts);
        let fix = format!("callgate disable {}", state.unit);
        state.add(false, format!("systemd has no such unit: {why}"), fix);
        return Ok(state);
    }
    state.see_placement(config, &facts)?;
    if let Some(policy) = policy {
        state.see_plan(config, policy, &facts)?;
    }
    state.see_running()?;
    Ok(state)
}

impl State {
    fn add(&mut self, open: bool, what: String, fix: String) {
        self.faults.push(Fault { what, fix, open });
    }

    /// Where systemd would start it, and its sockets, and whether it may.
    fn see_placement(&mut self, config: &Config, facts: &Facts) -> anyhow::Result<()> {
        let (unit, workload) = (self.unit.clone(), self.workload.clone());
        let (slice, held) = (facts.get("Slice"), workload.slice());
        if slice != held {
            let what = format!("systemd would start it in {slice}, not in {held}");
            let fix = format!("systemctl daemon-reload; if it stays so, callgate enable {unit} says why");
            self.add(true, what, fix);
        }
        let sockets = facts
            .sockets
            .iter()
            .filter(|socket| unit::takes_connections(socket));
        let sockets: Vec<_> = sockets.map(|socket| socket.unit().to_owned()).collect();
        for socket in sockets::outside(&sockets, &workload)? {
            let what = format!("{socket} makes its sockets outside of the workload");
            let fix = format!(
                "callgate enable {unit}; systemctl stop {} {socket}; systemctl start {socket}",
                host::pattern(&unit)
            );
            self.add(true, what, fix);
        }
        let marker = config.runtime_dir.join("armed").join(workload.as_str());
        if !marker.exists() {
            let what = format!("the agent does not hold {workload}: the unit does not start");
            let fix = "systemctl start callgate, or put the workload into the policy".to_owned();
            self.add(false, what, fix);
        }
        Ok(())
    }

    /// What `enable` would say and write now.
    fn see_plan(&mut self, config: &Config, policy: &Policy, facts: &Facts) -> anyhow::Result<()> {
        let (unit, workload) = (self.unit.clone(), self.workload.clone());
        let Some(known) = policy.workload(&workload) else {
            let what = format!("the policy has no workload {workload}: it is held, and may do nothing");
            self.add(
                false,
                what,
                format!("put it into the policy, or callgate disable {unit}"),
            );
            return Ok(());
        };
        let accepted = accepted(&host::file(&unit))?;
        let again = command(&unit, &workload, &accepted);
        let setup = settings::setup(config, policy, known, facts, accepted)?;
        let plan = unit::plan(facts, &workload, &setup);
        for finding in &plan.findings {
            let what = format!("{}: {}", finding.setting, finding.text);
            match finding.weight {
                Weight::Refusal => self.add(true, what, format!("mend it, then {again}")),
                Weight::Warning => self.warnings.push(Fault {
                    what,
                    fix: finding.fix.clone(),
                    open: false,
                }),
                Weight::Note => {}
            }
        }
        if sockets::is_stale(&unit, &plan)? {
            let restart = format!("systemctl try-restart {}", host::pattern(&unit));
            self.add(false, STALE.to_owned(), format!("{again}; {restart}"));
        }
        Ok(())
    }

    /// What still runs as it was before.
    fn see_running(&mut self) -> anyhow::Result<()> {
        for (instance, cgroup) in host::running(&self.unit)? {
            // An instance that is enabled by itself goes before its template.
            let is_anothers = instance != self.unit && host::file(&instance).exists();
            if !is_anothers && !cgroup.contains(&format!("/{}/", self.workload.slice())) {
                let what = format!("{instance} runs as it was before it was enabled, in {cgroup}");
                self.add(true, what, format!("systemctl restart {instance}"));
            }
        }
        Ok(())
    }
}

/// The command that enables a unit as it was enabled.
fn command(unit: &str, workload: &WorkloadName, accepted: &Accepted) -> String {
    let open = accepted
        .left_open
        .iter()
        .map(|path| format!(" --leave-open {}", path.display()));
    let privileged = if accepted.privileged {
        " --allow-privileged"
    } else {
        ""
    };
    let options: String = open.chain([privileged.to_owned()]).collect();
    format!("callgate enable --workload {workload}{options} {unit}")
}

/// What the operator accepted when the drop-in was written.
fn accepted(file: &Path) -> anyhow::Result<Accepted> {
    let text = std::fs::read_to_string(file).with_context(|| format!("can't read {}", file.display()))?;
    let closed = |path: &&&str| {
        text.lines()
            .any(|line| line.strip_prefix("InaccessiblePaths=-") == Some(**path))
    };
    let open = SERVICES.iter().filter(|path| !closed(path));
    Ok(Accepted {
        left_open: open.map(std::path::PathBuf::from).collect(),
        privileged: unit::accepts_privileged(&text),
    })
}
