//! A workload's questions about names, over UDP and TCP: put to the policy in force and, where refused, on record.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use crate::addr::HostName;
use crate::audit::record::{Caller, Decision, Protocol};
use crate::audit::{Kind, Outcome};
use crate::dns::resolver::Resolver;
use crate::dns::stub::Rules;
use crate::dns::{stream, stub};
use crate::identity::WorkloadName;
use crate::policy::DenialReason;

use super::Shared;
use super::connection::Connection;
use super::failure::Failure;
use super::flood::Flood;

/// Where names are asked for.
pub(super) const PORT: u16 = 53;
/// Questions of one workload that are worked on at once.
const AT_ONCE: usize = 64;

/// What each workload has under way and has on record, whichever way it asks.
#[derive(Debug, Default)]
pub struct Questions(Mutex<HashMap<WorkloadName, Arc<Quota>>>);

#[derive(Debug)]
struct Quota {
    turns: Arc<Semaphore>,
    flood: Flood,
}

impl Questions {
    fn of(&self, workload: &WorkloadName) -> Arc<Quota> {
        let mut quotas = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let quota = quotas.entry(workload.clone()).or_insert_with(|| {
            Arc::new(Quota {
                turns: Arc::new(Semaphore::new(AT_ONCE)),
                flood: Flood::default(),
            })
        });
        Arc::clone(quota)
    }
}

/// Answers what `workload` asks by UDP until the socket breaks.
pub async fn datagrams(shared: Arc<Shared>, workload: WorkloadName, socket: UdpSocket, resolver: Resolver) {
    let quota = shared.questions.of(&workload);
    let turns = Arc::clone(&quota.turns);
    let caller = Caller {
        workload: Some(workload.clone()),
        ..Caller::default()
    };
    let asking = Asking {
        shared,
        workload,
        caller: Arc::new(caller),
        protocol: Protocol::Udp,
        quota,
    };
    stub::serve(socket, resolver, Arc::new(asking), turns).await;
}

/// Answers what is asked on one TCP connection.
pub(super) async fn serve(connection: &Rc<Connection>, stream: TcpStream) -> Result<(), Failure> {
    let thread = &connection.thread;
    let workload = connection.identity().workload.clone();
    let quota = thread.shared.questions.of(&workload);
    let asking = Asking {
        shared: Arc::clone(&thread.shared),
        workload,
        caller: Arc::clone(&connection.log().caller),
        protocol: Protocol::Tcp,
        quota: Arc::clone(&quota),
    };
    let closing = thread.closing_idle.cancelled();
    match stream::serve(stream, &thread.resolver, &asking, &quota.turns, closing).await {
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
    caller: Arc<Caller>,
    protocol: Protocol,
    quota: Arc<Quota>,
}

impl Rules for Asking {
    fn may_ask(&self, host: &HostName) -> bool {
        let enforced = self.shared.policy.current();
        enforced
            .policy
            .workload(&self.workload)
            .is_some_and(|workload| workload.may_ask(host))
    }

    fn refused(&self, name: &str) {
        let Some(count) = self.quota.flood.count() else {
            return;
        };
        let mut record = self.shared.audit.record(Kind::Dns, Arc::clone(&self.caller));
        record.policy = Some(Arc::clone(&self.shared.policy.current().version));
        record.protocol = Some(self.protocol);
        record.authority = Some(crate::audit::record::clip(name, 253).into());
        record.decision = Some(Decision::Deny);
        record.reason = Some(DenialReason::HostNotAllowed.code().into());
        record.outcome = Outcome::Denied;
        record.count = Some(count);
        self.shared.audit.append(&record);
    }
}
