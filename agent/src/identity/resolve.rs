//! From the kernel's origin to an identity, checked against `/proc`.
//!
//! What the kernel recorded in the caller's own context (workload, cgroup id, user, process, network
//! namespace) is true whatever became of the caller. What only `/proc` knows is taken while the process is
//! held and agrees with that record in start time, cgroup and executable; otherwise it is absent. Everything
//! here blocks: call it from a small pool of threads.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use callgate_common::Origin;
use serde::{Deserialize, Serialize};

use super::cgroup::Cgroups;
use super::executable::{ExecutableError, Executables, FileId};
use super::process::HeldProcess;
use super::users::Users;
use super::{Cgroup, Executable, Identity, Process, WorkloadName, unit};

/// What the kernel recorded about one caller when it connected.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Claim {
    /// The workload's number, as the supervisor gave it.
    pub workload: u32,
    /// The caller's cgroup.
    pub cgroup_id: u64,
    /// The caller's network namespace.
    pub netns_cookie: u64,
    /// The thread group (process) id in the agent's pid namespace; `None` if it has none there.
    pub tgid: Option<u32>,
    /// The thread id, likewise.
    pub tid: Option<u32>,
    /// When the group leader started: nanoseconds of CLOCK_BOOTTIME. `None` where the kernel's type
    /// information doesn't lead there.
    pub start_time: Option<u64>,
    /// How often the process has called execve; `None` as above.
    pub exec_id: Option<u64>,
    /// The file that it ran; `None` as above.
    pub executable: Option<FileId>,
    /// The calling thread's user.
    pub uid: u32,
    /// The calling thread's group.
    pub gid: u32,
    /// The calling thread's name; up to 15 bytes of any value, shown with replacements where not UTF-8.
    pub comm: Arc<str>,
    /// When it connected: nanoseconds of CLOCK_BOOTTIME.
    pub stamp: u64,
}

impl From<&Origin> for Claim {
    fn from(origin: &Origin) -> Self {
        let comm = origin.comm();
        let end = comm.iter().position(|byte| *byte == 0).unwrap_or(comm.len());
        let comm = String::from_utf8_lossy(comm.get(..end).unwrap_or_default());
        Self {
            workload: origin.workload(),
            cgroup_id: origin.cgroup_id(),
            netns_cookie: origin.netns_cookie(),
            tgid: origin.tgid(),
            tid: origin.tid(),
            start_time: origin.start_time(),
            exec_id: origin.exec_id(),
            executable: origin.exe().map(|(device, inode)| FileId { device, inode }),
            uid: origin.uid(),
            gid: origin.gid(),
            comm: comm.into(),
            stamp: origin.stamp(),
        }
    }
}

/// How much to find out; each costs a little more.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Want {
    /// The executable's path, device and inode.
    pub exe: bool,
    /// Its SHA-256; means `exe` too.
    pub digest: bool,
}

/// Why there is no identity: the call is denied.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The kernel named a workload that this process doesn't have (any more).
    #[error("the kernel's record names workload number {number}, which is not in the policy")]
    UnknownWorkload {
        /// The number.
        number: u32,
    },
}

/// Makes identities. Shared by the threads of the pool.
#[derive(Debug)]
pub struct Resolver {
    parent: String,
    cgroups: Cgroups,
    workloads: ArcSwap<HashMap<u32, Known>>,
    executables: Executables,
    users: Users,
}

#[derive(Clone, Debug)]
struct Known {
    name: WorkloadName,
    slice: Arc<str>,
}

impl Resolver {
    /// For workloads (number and name) whose cgroups lie directly below `parent` (a path below the cgroup v2
    /// `mount`, beginning with '/').
    #[must_use]
    pub fn new(
        mount: &Path,
        parent: &str,
        workloads: impl IntoIterator<Item = (u32, WorkloadName)>,
        max_digest_bytes: u64,
    ) -> Self {
        let resolver = Self {
            parent: parent.trim_end_matches('/').to_owned(),
            cgroups: Cgroups::new(mount),
            workloads: ArcSwap::default(),
            executables: Executables::new(max_digest_bytes),
            users: Users::default(),
        };
        resolver.set_workloads(workloads);
        resolver
    }

    /// Takes another set of workloads; connections resolved from now on are measured by it.
    pub fn set_workloads(&self, workloads: impl IntoIterator<Item = (u32, WorkloadName)>) {
        let known = workloads.into_iter().map(|(number, name)| {
            let slice = format!("{}/{}", self.parent, name.slice()).into();
            (number, Known { name, slice })
        });
        self.workloads.store(Arc::new(known.collect()));
    }

    /// Who made the connection.
    ///
    /// # Errors
    /// If the workload is unknown. What else is unknown is absent from the identity.
    pub fn resolve(&self, claim: &Claim, want: Want) -> Result<Identity, ResolveError> {
        let slice = self.known(claim)?.slice;
        let held = hold(claim).ok();
        let shown = held.as_ref().and_then(|process| process.cgroup().ok().flatten());
        let path = self.cgroups.path(&slice, claim.cgroup_id, shown.as_deref());
        let place = self.place(&slice, path.as_deref(), claim.cgroup_id);
        let executable = held
            .filter(|_| want.exe || want.digest)
            .and_then(|process| self.inspect(&process, claim, want.digest).ok());
        Ok(Identity {
            unit: place.unit,
            invocation: place.invocation,
            container: place.container,
            cgroup: Cgroup {
                id: claim.cgroup_id,
                path,
            },
            user: self.users.name(claim.uid),
            executable,
            ..self.of_kernel(claim)?
        })
    }

    /// Who made the connection, by the kernel's own record alone: nothing is read, so nothing can keep the answer.
    ///
    /// # Errors
    /// If the workload is unknown.
    pub fn of_kernel(&self, claim: &Claim) -> Result<Identity, ResolveError> {
        Ok(Identity {
            workload: self.known(claim)?.name,
            unit: None,
            invocation: None,
            container: None,
            cgroup: Cgroup {
                id: claim.cgroup_id,
                path: None,
            },
            uid: claim.uid,
            gid: claim.gid,
            user: None,
            process: process(claim),
            executable: None,
            netns_cookie: claim.netns_cookie,
        })
    }

    /// The executable of the connecting process again, for a request on a connection that was kept.
    ///
    /// It must still be the one that the kernel reported at connect: a process could otherwise write its
    /// request and then become the allowed program.
    ///
    /// # Errors
    /// If it isn't, or the process ended, or left its cgroup: a rule that asks for `exe` does not allow then.
    pub fn recheck(&self, claim: &Claim, want: Want) -> Result<Executable, ExecutableError> {
        self.inspect(&hold(claim)?, claim, want.digest)
    }

    fn known(&self, claim: &Claim) -> Result<Known, ResolveError> {
        self.workloads
            .load()
            .get(&claim.workload)
            .cloned()
            .ok_or(ResolveError::UnknownWorkload {
                number: claim.workload,
            })
    }

    fn inspect(
        &self,
        process: &HeldProcess,
        claim: &Claim,
        digest: bool,
    ) -> Result<Executable, ExecutableError> {
        let pid = process.pid();
        let reported = claim.executable.ok_or(ExecutableError::NotReported)?;
        let executable = self
            .executables
            .inspect(process, reported, digest.then_some(claim.workload))?;
        // Looked at last: a process that left while it was examined is not the caller that the policy means.
        match process.cgroup()? {
            Some(path) if self.cgroups.is(&path, claim.cgroup_id) => Ok(executable),
            Some(_) | None => Err(ExecutableError::Moved { pid }),
        }
    }

    fn place(&self, slice: &str, path: Option<&str>, id: u64) -> Place {
        let Some(path) = path.filter(|_| self.cgroups.root_owned(slice)) else {
            return Place::default();
        };
        let placement = unit::placement(slice, path);
        let invocation = placement
            .unit
            .and_then(|_| unit::first_level(slice, path))
            .and_then(|level| self.cgroups.invocation(level))
            // The attribute was that of this unit's directory if the caller's cgroup still lies in it: a
            // directory with children can't be removed and made again.
            .filter(|_| self.cgroups.is(path, id));
        Place {
            unit: placement.unit.map(Arc::from),
            container: placement.container.map(Arc::from),
            invocation,
        }
    }
}

/// Without a start time nothing tells the caller from a later process of the same number.
fn hold(claim: &Claim) -> Result<HeldProcess, ExecutableError> {
    let (Some(pid), Some(start_time)) = (claim.tgid, claim.start_time) else {
        return Err(ExecutableError::NotReported);
    };
    Ok(HeldProcess::open_started_at(pid, start_time)?)
}

fn process(claim: &Claim) -> Option<Process> {
    Some(Process {
        pid: claim.tgid?,
        start_time: claim.start_time?,
        comm: Arc::clone(&claim.comm),
    })
}

#[derive(Default)]
struct Place {
    unit: Option<Arc<str>>,
    container: Option<Arc<str>>,
    invocation: Option<Arc<str>>,
}

#[cfg(test)]
mod tests;
