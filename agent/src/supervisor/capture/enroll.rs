//! A process asks to become a workload's: who may, and what it is told.

use super::Capture;
use crate::admin::{Enrolled, Peer};
use crate::enroll::trust::Trust;
use crate::identity::WorkloadName;
use crate::policy::matcher::Account;
use crate::policy::{Policy, Workload};

impl Capture {
    /// Moves a process that asked for it into a workload, if it may.
    pub(in crate::supervisor) fn enroll(
        &mut self,
        peer: &Peer,
        workload: &WorkloadName,
        policy: &Policy,
        trust: &Trust,
    ) -> Result<Enrolled, String> {
        let known = policy.workload(workload).ok_or_else(|| {
            format!(
                "the policy has no workload {workload:?}",
                workload = workload.as_str()
            )
        })?;
        if !self.intact {
            return Err(
                "the kernel programs are not all in place, so nothing may run in a workload; `callgate status` and the agent's log say more".to_owned(),
            );
        }
        if !may_exec(peer, known) {
            return Err(format!(
                "user {} may not run commands in workload {workload} (`exec_by`)",
                peer.uid
            ));
        }
        let id = uuid::Uuid::now_v7().simple().to_string();
        let cgroup = self
            .workloads
            .place(&peer.process, workload, &id)
            .map_err(|error| error.to_string())?;
        self.serve_entered(workload, &peer.process);
        tracing::info!(%workload, uid = peer.uid, pid = peer.process.pid(), cgroup, "a command was enrolled");
        let (hidden, fixed) = if peer.uid == 0 {
            (self.view.hidden(policy), self.view.fixed(policy))
        } else {
            // Another user can't read or change these anyway, and need not know where they are.
            Default::default()
        };
        Ok(Enrolled {
            cgroup,
            env: trust.env.clone(),
            hidden,
            fixed,
            over: trust.directories.clone(),
        })
    }
}

/// Root may; others where `exec_by` names them or one of their groups. A name that the user database does not
/// know names nobody.
fn may_exec(peer: &Peer, workload: &Workload) -> bool {
    let exec_by = workload.exec_by();
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(peer.uid))
        .ok()
        .flatten();
    let is_user = |account: &Account| match account {
        Account::Id(id) => *id == peer.uid,
        Account::Name(name) => user.as_ref().is_some_and(|user| user.name == **name),
    };
    let in_group = |account: &Account| match account {
        Account::Id(id) => *id == peer.gid,
        Account::Name(name) => nix::unistd::Group::from_name(name)
            .ok()
            .flatten()
            .is_some_and(|group| {
                group.gid.as_raw() == peer.gid
                    || user.as_ref().is_some_and(|user| group.mem.contains(&user.name))
            }),
    };
    peer.uid == 0 || exec_by.users.iter().any(is_user) || exec_by.groups.iter().any(in_group)
}
