//! The unprivileged process: gives up everything, then runs one runtime per core.
//!
//! This thread is the control side: it takes what the supervisor pushes, accepts connections and hands them to
//! the data threads in turn (`data`). It also feeds the kernel's liveness word, and only with the oldest sign
//! of life of all data threads: a worker that hangs stops being fed, and the kernel then refuses connections.

mod data;
mod drain;
mod lull;

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::audit::{self, Log, Writer};
use crate::budget::{Budgets, Lines};
use crate::channel::worker::{AskError, Channel, Client, Event, StartDescriptors};
use crate::channel::{self, CredentialState, FrameError, ListenerInfo, PolicySource, WorkloadFigures};
use crate::credential::source::{Update, Value};
use crate::credential::store::Store as Credentials;
use crate::dns;
use crate::dns::resolver::{Names, Settings as NameSettings};
use crate::ebpf::maps::{Liveness, Origins};
use crate::identity::WorkloadName;
use crate::memory;
use crate::net::listener::Quota;
use crate::policy::{CredentialName, DenialReason, Policy, Source};
use crate::proxy::{self, InForce, Limits, RootsInForce, Shared, questions};
use crate::tls;

use data::DataThreads;
use drain::Drain;
use lull::Lull;

/// How often the kernel's liveness word is fed; it counts as stale after two seconds.
const BEAT: Duration = Duration::from_millis(250);
/// How long the audit writer may take to write what is owed when the worker ends.
const LAST_RECORDS: Duration = Duration::from_secs(5);

/// Why the worker can't go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The channel to the supervisor broke.
    #[error("the channel to the supervisor broke: {0}")]
    Channel(#[from] FrameError),
    /// The supervisor is gone.
    #[error("the supervisor can't be told: {0}")]
    Ask(#[from] AskError),
    /// The first message was not the settings.
    #[error("the supervisor began with something else than the settings")]
    NoStart,
    /// A thread, a runtime or a timer could not be made.
    #[error("the worker can't be set up: {0}")]
    Setup(#[from] std::io::Error),
    /// TLS can't be set up.
    #[error("TLS can't be set up: {0}")]
    Tls(#[from] tls::Error),
    /// The kernel's maps can't be used.
    #[error("the kernel's maps can't be used: {0}")]
    Kernel(#[from] crate::ebpf::Error),
    /// Names can't be looked up.
    #[error("names can't be looked up: {0}")]
    Names(#[from] dns::Error),
    /// The in-flight table can't be used.
    #[error("the in-flight table can't be used: {0}")]
    InFlight(#[from] audit::inflight::Error),
}

/// Runs until the supervisor says drain or leave, or is gone. The caller has entered the sandbox before.
///
/// # Errors
/// If the worker can't be set up or the channel breaks. Open calls end as *aborted* then.
pub fn run(socket: OwnedFd) -> Result<(), Error> {
    memory::keep_some();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(control(socket))
}

async fn control(socket: OwnedFd) -> Result<(), Error> {
    let (mut channel, client) = Channel::open(socket)?;
    let Some(Event::Start(start, descriptors)) = channel.next().await? else {
        return Err(Error::NoStart);
    };
    let (mut worker, writer) = Worker::set_up(&start, descriptors, client)?;
    let mut ready = false;
    let mut beat = tokio::time::interval(BEAT);
    let mut code = tokio::time::interval(memory::CODE_SPAN);
    let mut calls_before = 0;
    let mut lull = Lull::new(Instant::now());
    let drain = loop {
        let event = tokio::select! {
            event = channel.next() => event?,
            _ = beat.tick() => {
                worker.feed();
                if lull.has_come(worker.threads.sum(proxy::Figures::calls), Instant::now()) {
                    // Not here: with a large heap it takes a while, and the beat must go on.
                    drop(tokio::task::spawn_blocking(memory::give_back));
                }
                continue;
            }
            _ = code.tick() => {
                memory::unmap_code();
                // Not beside calls: a first write to a page of a file may wait for the disk.
                let calls = worker.threads.sum(proxy::Figures::calls);
                if calls == std::mem::replace(&mut calls_before, calls) {
                    worker.shared.audit.unmap();
                }
                continue;
            }
        };
        let Some(event) = event else { break Drain::NOW };
        if let Some(drain) = worker.handle(event).await? {
            break drain;
        }
        if !ready && worker.shared.policy.current().version.generation > 0 {
            worker.client.ready().await?;
            ready = true;
        }
    };
    worker.drain(drain, &mut channel).await?;
    if !writer.close(LAST_RECORDS) {
        tracing::error!("not every record could be written; the next start writes them as aborted");
    }
    // A supervisor that is gone needs no word of it.
    if let Err(error) = worker.client.drained().await {
        tracing::debug!(%error, "drained without a supervisor");
    }
    // The message leaves with the task that owns the socket.
    tokio::time::sleep(Duration::from_millis(50)).await;
    Ok(())
}

/// The control side's state.
struct Worker {
    shared: Arc<Shared>,
    client: Client,
    threads: DataThreads,
    resolver: dns::resolver::Resolver,
    liveness: Liveness,
    listeners: HashMap<WorkloadName, Listening>,
    draining: bool,
}

/// A workload's listeners while they are served.
struct Listening {
    quota: Quota,
    stop: CancellationToken,
    /// The same for the listeners in one network namespace.
    inside: HashMap<u64, CancellationToken>,
}

impl Listening {
    fn stop_in(&mut self, netns: u64) -> &CancellationToken {
        self.inside
            .entry(netns)
            .or_insert_with(|| self.stop.child_token())
    }
}

impl Worker {
    fn set_up(
        start: &channel::Start,
        descriptors: StartDescriptors,
        client: Client,
    ) -> Result<(Self, Writer), Error> {
        let table = audit::inflight::Table::map(File::from(descriptors.inflight))?;
        let sink = audit::file::FileSink::new(
            File::from(descriptors.audit),
            audit::file::Writes::Worker,
            audit::file::Sync::default(),
        );
        let settings = audit::Settings {
            queries: if start.query_values {
                audit::Queries::Verbatim
            } else {
                audit::Queries::Keys
            },
            slots_per_workload: start.slots_per_workload,
        };
        let (log, writer) = Log::start(Box::new(sink), table, settings)?;
        let shared = Arc::new(Shared {
            policy: InForce::nothing(),
            credentials: Credentials::new(),
            audit: log,
            leaves: tls::leaf::Leaves::new(LEAVES)?,
            acceptor: tls::downstream::Acceptor::new()?,
            roots: RootsInForce::new(tls::upstream::Roots::from_der(&start.upstream_roots)?),
            origins: Origins::new(descriptors.origins)?,
            supervisor: client.clone(),
            names: Names::new(&NameSettings {
                resolvers: start.resolvers.clone(),
                hosts: start.hosts.clone(),
            })?,
            given: dns::given::Given::default(),
            questions: questions::Questions::default(),
            limits: Limits::from(start.limits.clone()),
            threads: usize::from(start.threads.max(1)),
            netns: start.netns,
            memory_short: AtomicBool::new(false),
            refusals: Budgets::new(proxy::REFUSALS),
            lines: Lines::default(),
        });
        let resolver = dns::resolver::Resolver::new(&shared.names, shared.given.clone())?;
        let threads = DataThreads::start(shared.threads, &shared)?;
        let worker = Self {
            shared,
            client,
            threads,
            resolver,
            liveness: Liveness::new(descriptors.liveness)?,
            listeners: HashMap::new(),
            draining: false,
        };
        Ok((worker, writer))
    }

    /// Takes one event in; answers how to end when it is time to.
    async fn handle(&mut self, event: Event) -> Result<Option<Drain>, Error> {
        match event {
            Event::Start(..) => return Err(Error::NoStart),
            Event::Policy { generation, sources } => self.set_policy(generation, sources).await?,
            Event::Credential { name, state } => self.set_credential(&name, state),
            Event::Roots { certificates } => self.set_roots(&certificates).await?,
            // Offered while the drain was on its way: the successor has them too.
            Event::Listener(..) | Event::Names(..) if self.draining => {}
            Event::Listener(info, socket) => self.listen(info, socket)?,
            Event::Names(info, socket) => self.answer_names(info, socket)?,
            Event::Unlisten { workload, netns } => self.unlisten(&workload, netns),
            Event::Intermediate { intermediate, .. } => {
                self.shared
                    .leaves
                    .add_intermediate(intermediate.as_ref().clone())?;
            }
            Event::AuditFile(file) => self.shared.audit.reopen(File::from(file)),
            Event::Memory { short } => self.shared.memory_short.store(short, Ordering::Relaxed),
            Event::Drain { deadline, idle } => {
                return Ok(Some(Drain {
                    deadline,
                    idle,
                    baton: None,
                }));
            }
            Event::Leave {
                deadline,
                idle,
                baton,
            } => {
                return Ok(Some(Drain {
                    deadline,
                    idle,
                    baton: Some(baton),
                }));
            }
            Event::Status { request } => self.client.status(request, self.figures()).await?,
        }
        Ok(None)
    }

    /// The supervisor has compiled the same texts with the same code before it sent them; if they don't compile
    /// here all the same, the last policy stays.
    async fn set_policy(&mut self, generation: u64, sources: Vec<PolicySource>) -> Result<(), Error> {
        let sources: Vec<Source> = sources
            .into_iter()
            .map(|source| Source {
                name: source.name.into(),
                text: source.text.into(),
            })
            .collect();
        match Policy::compile(&sources) {
            Ok(policy) => {
                self.shared.credentials.configure(policy.credentials().cloned());
                let names = policy.workloads().map(|workload| workload.name().clone());
                self.shared.audit.entitle(names);
                self.shared.policy.replace(policy, generation);
                self.threads.redecide();
                memory::give_back();
                self.client.policy_applied(generation).await?;
            }
            Err(diagnostics) => {
                let message = format!(
                    "policy {generation} does not compile ({} errors)",
                    diagnostics.len()
                );
                tracing::error!(message, "the last policy stays");
                self.client.fault(message).await?;
            }
        }
        Ok(())
    }

    fn set_credential(&self, name: &str, state: CredentialState) {
        let Ok(name) = CredentialName::parse(name) else {
            tracing::error!(name, "the supervisor sent a credential with a name that can't be");
            return;
        };
        let value = match state {
            CredentialState::Available { value, version } => match value.into_secret() {
                Ok(secret) => Value::Ready { secret, version },
                Err(error) => Value::Unavailable {
                    reason: error.to_string().into(),
                },
            },
            CredentialState::Unavailable { reason } => Value::Unavailable {
                reason: reason.into(),
            },
        };
        self.shared.credentials.update(Update { name, value });
    }

    /// Calls that are under way go on; what they were sent over is not used for others any more.
    async fn set_roots(&self, certificates: &[Vec<u8>]) -> Result<(), Error> {
        match tls::upstream::Roots::from_der(certificates) {
            Ok(roots) => self.shared.roots.replace(roots),
            Err(error) => {
                tracing::error!(%error, "upstreams are verified by the roots from before");
                self.client.fault(error.to_string()).await?;
            }
        }
        Ok(())
    }

    fn listen(&mut self, info: ListenerInfo, socket: std::net::TcpListener) -> Result<(), Error> {
        let listening = self.listening(&info.workload);
        let (quota, stop) = (listening.quota.clone(), listening.stop_in(info.netns).clone());
        let (audit, workload) = (self.shared.audit.clone(), Some(info.workload.clone()));
        let flood = move || audit.count_refused(&workload, DenialReason::Limit);
        self.threads.accept(info.workload, socket, quota, stop, flood)?;
        Ok(())
    }

    fn unlisten(&mut self, workload: &WorkloadName, netns: u64) {
        if let Some(listening) = self.listeners.get_mut(workload)
            && let Some(stop) = listening.inside.remove(&netns)
        {
            stop.cancel();
        }
        self.threads.forget(workload, netns);
    }

    fn listening(&mut self, workload: &WorkloadName) -> &mut Listening {
        let limits = &self.shared.limits;
        let quota = || Quota::new(limits.connections(), limits.buffers());
        self.listeners
            .entry(workload.clone())
            .or_insert_with(|| Listening {
                quota: quota(),
                stop: CancellationToken::new(),
                inside: HashMap::new(),
            })
    }

    fn answer_names(&mut self, info: ListenerInfo, socket: std::net::UdpSocket) -> Result<(), Error> {
        let socket = tokio::net::UdpSocket::from_std(socket)?;
        let stop = self.listening(&info.workload).stop_in(info.netns).clone();
        let (shared, resolver) = (Arc::clone(&self.shared), self.resolver.clone());
        let serving = questions::datagrams(shared, info.workload, socket, resolver);
        // Answers under way go out all the same: each is a task of its own.
        tokio::spawn(async move { stop.run_until_cancelled(serving).await });
        Ok(())
    }

    fn feed(&mut self) {
        if let Err(error) = self.liveness.beat_as_of(self.threads.oldest_sign_of_life()) {
            tracing::error!(%error, "the kernel's liveness word can't be written; connections will be refused");
        }
    }

    fn figures(&self) -> channel::Figures {
        let workloads = self
            .listeners
            .iter()
            .map(|(workload, listening)| WorkloadFigures {
                workload: workload.clone(),
                connections: listening.quota.held() as u64,
            });
        let workloads: Vec<WorkloadFigures> = workloads.collect();
        channel::Figures {
            generation: self.shared.policy.current().version.generation,
            connections: workloads.iter().map(|figures| figures.connections).sum(),
            calls: self.threads.sum(proxy::Figures::calls),
            denied: self.threads.sum(proxy::Figures::denied),
            failed: self.threads.sum(proxy::Figures::failed),
            audit_error: self.shared.audit.failure().map(|why| why.to_string()),
            workloads,
        }
    }
}

/// Hosts whose intermediate and leaf are kept.
const LEAVES: usize = 8192;
