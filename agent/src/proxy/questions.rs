//! A workload's questions about names, over UDP and TCP: put to the policy in force and, where refused, on record.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use crate::addr::HostName;
use crate::audit::record::{Caller, Decision, KnownCaller, Protocol};
use crate::audit::{Kind, Outcome};
use crate::budget::Budgets;
use crate::dns::resolver::Resolver;
use crate::dns::stub::Rules;
use crate::dns::{self, stream, stub};
use crate::identity::WorkloadName;
use crate::policy::DenialReason;

use super::connection::Connection;
use super::failure::Failure;
use super::{REFUSALS, Shared};

/// Where names are asked for.
pub(super) const PORT: u16 = 53;
/// Questions of one workload that are worked on at once.
const AT_ONCE: usize = 64;

/// What each workload has under way and may have on record one by one, whichever way it asks.
#[derive(Debug)]
pub struct Questions {
    turns: Mutex<HashMap<WorkloadName, Arc<Semaphore>>>,
    refusals: Budgets<WorkloadName>,
}

impl Default for Questions {
    fn default() -> Self {
        Self {
            turns: Mutex::default(),
            refusals: Budgets::new(REFUSALS),
        }
    }
}

impl Questions {
    fn turns(&self, workload: &WorkloadName) -> Arc<Semaphore> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let own = turns
            .entry(workload.clone())
            .or_insert_with(|| Arc::new(Semaphore::new(AT_ONCE)));
        Arc::clone(own)
    }
}

/// Answers what `workload` asks by UDP until the socket breaks.
pub async fn datagrams(shared: Arc<Shared>, workload: WorkloadName, socket: UdpSocket, resolver: Resolver) {
    let turns = shared.questions.turns(&workload);
    let caller = Caller {
        workload: Some(workload.clone()),
        ..Caller::default()
    };
    let asking = Asking {
        shared,
        workload,
        caller: caller.into(),
        protocol: Protocol::Udp,
    };
    stub::serve(socket, resolver, Arc::new(asking), turns).await;
}

/// Answers what is asked on one TCP connection.
pub(super) async fn serve(connection: &Rc<Connection>, stream: TcpStream) -> Result<(), Failure> {
    let thread = &connection.thread;
    let workload = connection.identity().workload.clone();
    let turns = thread.shared.questions.turns(&workload);
    let asking = Asking {
        shared: Arc::clone(&thread.shared),
        workload,
        caller: connection.log().caller.clone(),
        protocol: Protocol::Tcp,
    };
    let closing = thread.closing_idle.cancelled();
    match stream::serve(stream, &thread.resolver, &asking, &turns, closing).await {
        Ok(()) => Ok(()),
        Err(stream::Broken::NoQuestion) => Err(Failure::Malformed("no DNS question on port 53")),
        Err(broken @ stream::Broken::Io(_)) => Err(Failure::Left {
            message: broken.to_string(),
        }),
    }
}

/// Who asks, and how.
struct Asking {
    shared: Arc<Shared>,
    workload: WorkloadName,
    caller: KnownCaller,
    protocol: Protocol,
}

impl Rules for Asking {
    fn workload(&self) -> &WorkloadName {
        &self.workload
    }

    fn may_ask(&self, host: &HostName) -> bool {
        let enforced = self.shared.policy.current();
        enforced
            .policy
            .workload(&self.workload)
            .is_some_and(|workload| workload.may_ask(host))
    }

    fn failed(&self, error: &dns::Error) {
        if let Some(left_out) = self.shared.lines.next(&self.workload) {
            let workload = &self.workload;
            tracing::warn!(%error, %workload, left_out, "a workload's name could not be resolved");
        }
    }

    fn refused(&self, name: &str) {
        let audit = &self.shared.audit;
        if !self.shared.questions.refusals.spend(&self.workload, 1) {
            return audit.count_refused(&Some(self.workload.clone()), DenialReason::HostNotAllowed);
        }
        let mut record = audit.record(Kind::Dns, self.caller.clone());
        record.policy = Some(Arc::clone(&self.shared.policy.current().version));
        record.protocol = Some(self.protocol);
        record.authority = Some(crate::audit::record::clip(name, 253).into());
        record.decision = Some(Decision::Deny);
        record.reason = Some(DenialReason::HostNotAllowed.code().into());
        record.outcome = Outcome::Denied;
        audit.append(&record);
    }
}
