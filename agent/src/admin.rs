//! The operator's interface: types of the admin protocol on the Unix socket.
//!
//! HTTP/1.1 with JSON: `GET /v1/status`, `POST /v1/reload`, `POST /v1/enroll`, `POST /v1/release`.

pub mod client;
mod guests;
pub mod server;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::identity::process::HeldProcess;

/// Who is at the other end of the socket, from the kernel.
#[derive(Debug)]
pub struct Peer {
    /// The process, held: its number can't come to mean another.
    pub process: Arc<HeldProcess>,
    /// Its user when it connected.
    pub uid: u32,
    /// Its group when it connected.
    pub gid: u32,
}

/// Asks to be moved into a workload.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Enroll {
    /// The workload's name.
    pub workload: String,
}

/// The peer is in the workload now.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Enrolled {
    /// Its cgroup.
    pub cgroup: String,
    /// Variables that make runtimes trust the agent.
    pub env: Vec<(String, String)>,
    /// What root, who could, must not read from inside. Empty for other peers.
    pub hidden: Vec<PathBuf>,
    /// What root must not change from inside.
    pub fixed: Vec<PathBuf>,
    /// Directories to mount over others, where these exist: roots to trust. Empty for other peers, who can't mount.
    pub over: Vec<(PathBuf, PathBuf)>,
}

/// Asks to let a workload go.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// The workload's name.
    pub workload: String,
    /// Also while processes run in it.
    pub running: bool,
}

/// The workload is managed no more.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Released {
    /// Whether processes of it run on, which nothing holds any more.
    pub running: bool,
}

/// What became of a reload.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Reloaded {
    /// The new policy is in force.
    pub ok: bool,
    /// The generation in force.
    pub generation: u64,
    /// What is in force, with what to look at, or every error of the new policy.
    pub message: String,
}

/// Something that was not done.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Refused {
    /// Why.
    pub error: String,
}

/// What runs.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Status {
    /// The agent's version.
    pub version: String,
    /// Seconds since its start.
    pub uptime_s: u64,
    /// SHA-256 of the policy's sources.
    pub policy_digest: String,
    /// The policy's generation.
    pub generation: u64,
    /// Why the last reload was refused; the policy before it is in force.
    #[serde(default)]
    pub reload_error: Option<String>,
    /// The process id of the worker that serves.
    pub worker_pid: Option<u32>,
    /// Workers before it that still end their calls.
    #[serde(default)]
    pub draining: usize,
    /// Why the last try to start a worker failed; none once one has taken over.
    #[serde(default)]
    pub worker_error: Option<String>,
    /// Whether records can be written.
    pub audit_ok: bool,
    /// Why they can't.
    #[serde(default)]
    pub audit_error: Option<String>,
    /// Why the roots that workloads trust, or that upstreams are verified by, are not the host's of now.
    #[serde(default)]
    pub trust_error: Option<String>,
    /// Calls since the worker's start.
    pub calls: u64,
    /// Those that policy refused.
    pub denied: u64,
    /// Those that failed.
    pub failed: u64,
    /// Whether all kernel programs are where they were put.
    pub perimeter_intact: bool,
    /// How often some had to be put back there.
    #[serde(default)]
    pub perimeter_repairs: u64,
    /// The workloads that are held.
    pub workloads: Vec<WorkloadStatus>,
    /// Workloads whose last canary did not arrive.
    #[serde(default)]
    pub canaries: Vec<CanaryStatus>,
    /// What else is held.
    #[serde(default)]
    pub strangers: Vec<StrangerStatus>,
    /// The credentials, without values.
    pub credentials: Vec<CredentialStatus>,
    /// The kernel side's counters, by reason.
    pub kernel: BTreeMap<String, u64>,
}

/// One workload.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct WorkloadStatus {
    /// Its name.
    pub name: String,
    /// Its cgroup, below the cgroup v2 mount.
    pub cgroup: String,
    /// The kernel's number of it.
    pub number: u32,
    /// Open connections.
    pub connections: u64,
    /// Whether the policy has it. One that it has no more is held all the same, and may do nothing.
    pub in_policy: bool,
}

/// A connect from inside a workload that did not come to the agent as it must.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct CanaryStatus {
    /// The workload.
    pub workload: String,
    /// Inode of the network namespace, if it is not the agent's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<u64>,
    /// What came of it.
    pub finding: String,
}

impl fmt::Display for CanaryStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.workload)?;
        if let Some(inode) = self.netns {
            write!(f, " in net:[{inode}]")?;
        }
        write!(f, ": {}", self.finding)
    }
}

/// A cgroup that an earlier run held, below another `cgroup_parent`: it stays held, and may do nothing.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct StrangerStatus {
    /// Its id: the inode of its directory.
    pub cgroup_id: u64,
    /// The kernel's number of it.
    pub number: u32,
}

/// One credential.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct CredentialStatus {
    /// Its name.
    pub name: String,
    /// Which value is in use.
    pub version: Option<String>,
    /// Why there is none.
    pub reason: Option<String>,
}
