//! What a systemd service needs to be a workload: the drop-in for it, and what can't be held or will not work.
//!
//! Pure: the unit's properties come in as text, the drop-in goes out as text.

pub mod drop_in;
mod facts;
mod findings;
mod paths;
mod reads;
mod socket;
mod writable;

use std::path::PathBuf;

use ipnet::IpNet;

use crate::identity::WorkloadName;

pub use drop_in::accepts_privileged;
pub use facts::{DropIn, Facts, PROPERTIES};
pub use paths::named;
pub use socket::{is_for, takes_connections};
pub use writable::{Closed, closed, line as writable_line};

/// The file name of the drop-in below `UNIT.d`.
pub const DROP_IN: &str = "50-callgate.conf";
/// The agent's own unit.
pub const AGENT_UNIT: &str = "callgate.service";

/// What the operator wants and how the agent is set up.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Setup {
    /// The marker that says that the workload is held.
    pub marker: PathBuf,
    /// The directory with the roots to trust.
    pub trust: PathBuf,
    /// Directories of it to show in the place of the host's: (own, host's).
    pub over: Vec<(PathBuf, PathBuf)>,
    /// Variables that make runtimes read it.
    pub variables: Vec<(String, String)>,
    /// Networks that the workload may reach past the agent.
    pub direct: Vec<IpNet>,
    /// Ports that the workload takes connections on.
    pub listen: Vec<u16>,
    /// What of the agent no workload may read.
    pub hidden: Vec<PathBuf>,
    /// What of the agent and of systemd no workload may change.
    pub fixed: Vec<PathBuf>,
    /// Services of the host that the unit may reach all the same, because the operator says so.
    pub left_open: Vec<PathBuf>,
    /// Whether commands with full privileges are accepted, because the operator says so.
    pub allow_privileged: bool,
    /// Whether the host has cgroups of version 1 beside those of version 2.
    pub hybrid: bool,
    /// Files and directories of the agent's that systemd shall give to no unit.
    pub own: Vec<PathBuf>,
    /// Paths, of the unit's and of the agent's, that lead elsewhere by symbolic links, with where that is.
    pub links: Vec<(PathBuf, PathBuf)>,
    /// Where the agent's own unit has its credentials from, as `LoadCredential=` says it.
    pub credentials: Vec<String>,
    /// The names of other managed units of other workloads, with the user that each runs as.
    pub neighbours: Vec<(String, String)>,
    /// Programs of the unit that seem to bring their own roots.
    pub bundled: Vec<PathBuf>,
}

impl Setup {
    /// Whether the workload takes connections at all.
    #[must_use]
    pub fn listens(&self) -> bool {
        !self.listen.is_empty()
    }
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Weight {
    /// Good to know.
    Note,
    /// Something will not work, or is held less tightly.
    Warning,
    /// The unit would not be held, or could not work at all.
    Refusal,
}

impl Weight {
    /// For people and machines.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Refusal => "refused",
        }
    }
}

/// Something about the unit.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    /// How much it matters.
    pub weight: Weight,
    /// The setting that it is about.
    pub setting: &'static str,
    /// What and why; for a refusal, what to do too.
    pub text: String,
    /// What to do about a warning.
    pub fix: String,
}

/// What enabling a unit means.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Plan {
    /// The drop-in.
    pub drop_in: String,
    /// Those of its socket units, by the units' names.
    pub sockets: Vec<(String, String)>,
    /// Worst first.
    pub findings: Vec<Finding>,
}

impl Plan {
    /// Whether something speaks against it.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.findings
            .iter()
            .any(|finding| finding.weight == Weight::Refusal)
    }
}

/// Plans for `facts.unit()` to become a part of `workload`.
#[must_use]
pub fn plan(facts: &Facts, workload: &WorkloadName, setup: &Setup) -> Plan {
    let mut findings = findings::of(facts, setup);
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.weight));
    Plan {
        drop_in: drop_in::text(facts, workload, setup),
        sockets: socket::drop_ins(facts, workload, setup),
        findings,
    }
}

#[cfg(test)]
mod tests;
