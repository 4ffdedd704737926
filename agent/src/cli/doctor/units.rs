//! The checks of what is managed: each enabled unit, and the roots that managed processes trust.

use std::path::Path;

use super::Check;
use crate::cli::enable::state::{State, states};
use crate::config::Config;
use crate::enroll::trust::{self, Compared};
use crate::policy::store;
use crate::supervisor::TRUST_DIR;

/// The roots, and one for each enabled unit.
#[must_use]
pub(super) fn checks(config: &Config) -> Vec<Check> {
    let mut checks = vec![roots(config)];
    checks.extend(units(config));
    checks
}

fn roots(config: &Config) -> Check {
    const NAME: &str = "roots to trust";
    const FIX: &str = "restart the agent, which writes them at its start; its log says what goes wrong";
    let directory = config.runtime_dir.join(TRUST_DIR);
    match trust::compare(&directory) {
        Ok(None) => Check::warn(
            NAME,
            format!("not written to {} yet", directory.display()),
            "start the agent",
        ),
        Ok(Some(Compared { host: 0, .. })) => Check::warn(
            NAME,
            "this host has no roots: managed processes trust nobody but the agent",
            "install ca-certificates",
        ),
        Ok(Some(Compared { own: 0, .. })) => Check::fail(NAME, "the agent's root is missing", FIX),
        Ok(Some(Compared { lacking: 0, host, .. })) => {
            Check::pass(NAME, format!("the host's {host} and the agent's"))
        }
        Ok(Some(Compared { lacking, .. })) => {
            Check::warn(NAME, format!("{lacking} of the host's roots are missing"), FIX)
        }
        Err(error) => Check::warn(NAME, error.to_string(), FIX),
    }
}

fn units(config: &Config) -> Vec<Check> {
    const NAME: &str = "units";
    // As sd_booted(3) tells.
    if !Path::new("/run/systemd/system").is_dir() {
        return vec![Check::pass(
            NAME,
            "systemd does not run here: workloads are commands of `callgate exec`",
        )];
    }
    // A policy with errors is another check's finding.
    let policy = store::load_dir(&config.policy_dir).policy.ok();
    match states(config, policy.as_ref()) {
        Ok(states) if states.is_empty() => vec![Check::pass(NAME, "none is enabled")],
        Ok(states) => states.iter().flat_map(checks_of).collect(),
        Err(error) => vec![Check::warn(
            NAME,
            format!("not looked at: {error:#}"),
            "see why systemd can't be asked",
        )],
    }
}

const UNIT: &str = "unit";

/// Whether it is held, and what holds it less tightly.
fn checks_of(state: &State) -> Vec<Check> {
    let warnings = state.warnings.iter().map(|warning| {
        let found = format!("{}: {}", state.unit, warning.what);
        Check::warn(UNIT, found, &warning.fix)
    });
    [check(state)].into_iter().chain(warnings).collect()
}

fn check(state: &State) -> Check {
    let (unit, workload, faults) = (&state.unit, &state.workload, &state.faults);
    if faults.is_empty() {
        return Check::pass(UNIT, format!("{unit} is held as a part of {workload}"));
    }
    let all: Vec<_> = faults.iter().map(|fault| fault.what.as_str()).collect();
    let found = format!("{unit}: {}", all.join("; "));
    let fixes: Vec<_> = faults.iter().map(|fault| fault.fix.as_str()).collect();
    if faults.iter().any(|fault| fault.open) {
        Check::fail(UNIT, found, &fixes.join("; "))
    } else {
        Check::warn(UNIT, found, &fixes.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;
    use crate::cli::enable::state::Fault;
    use crate::identity::WorkloadName;

    #[test]
    fn a_unit_that_goes_past_the_agent_fails_and_one_that_does_not_work_warns() {
        let fault = |open| Fault {
            what: "it is so".to_owned(),
            fix: "do this".to_owned(),
            open,
        };
        let with = |faults| State {
            unit: "billing.service".to_owned(),
            workload: WorkloadName::parse("billing").unwrap(),
            faults,
            warnings: Vec::new(),
        };
        assert_eq!(check(&with(vec![])).status, Status::Pass);
        assert_eq!(check(&with(vec![fault(false)])).status, Status::Warn);
        let worst = check(&with(vec![fault(false), fault(true)]));
        assert_eq!(worst.status, Status::Fail);
        assert_eq!(
            (worst.found.as_str(), worst.fix.as_str()),
            ("billing.service: it is so; it is so", "do this; do this")
        );
    }
}
