//! The privileged process: start order, reload, stop. Parses nothing from the network.
//!
//! Start: settings, CA, policy, credentials, what the last run left in the in-flight table, kernel programs,
//! listeners and workloads, worker, ready. From the moment a workload is armed it is held, whether or not a
//! worker serves it. Stop: the worker drains; pins stay, so what is managed stays held.

pub mod answers;
pub mod capture;
pub mod ground;
mod kernel_log;
pub mod records;
mod reload;
mod report;
pub mod sandbox;
pub mod worker_process;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::admin::server::{Request, Server, Socket};
use crate::channel::supervisor::Receiver;
use crate::channel::{self, CredentialState, PolicySource, ToSupervisor, ToWorker};
use crate::config::{Config, QueryValues};
use crate::credential::source::{Keeper, Update, Value};
use crate::dns::resolver::Settings as Names;
use crate::enroll::trust::{Trust, write_bundle};
use crate::policy::store::{self, Loaded};
use crate::policy::{Diagnostic, Policy, Source};
use crate::systemd;
use crate::tls;

use answers::Answers;
use capture::Capture;
use kernel_log::KernelLog;
use records::Records;
use sandbox::Unprivileged;
use worker_process::{Backoff, WorkerProcess};

/// How long calls may go on when the agent stops or a worker is replaced.
const DRAIN: Duration = Duration::from_secs(20);
/// How long a new worker may take until it serves.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long start and reload wait for the first values of credentials.
const FIRST_VALUES: Duration = Duration::from_secs(3);
/// How often sources, pins and leftovers are looked at.
const TICK: Duration = Duration::from_millis(500);
/// How often the kernel's refusals are read.
const EVENTS: Duration = Duration::from_millis(50);

/// Why the agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The policy has errors; they are printed by whoever asked.
    #[error("the policy has {} errors; `callgate check` shows them", .0.len())]
    Policy(Vec<Diagnostic>),
    /// Something that the agent needs is not granted.
    #[error("callgate lacks {missing}; run it as root, or as callgate.service")]
    Rights {
        /// The capabilities and their purposes.
        missing: String,
    },
    /// The admin socket.
    #[error(transparent)]
    Admin(#[from] crate::admin::server::BindError),
    /// Another agent runs here.
    #[error("another agent holds {path}; stop it first")]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The worker's user does not exist.
    #[error("there is no user {name:?} for the worker; create it, or set `worker_user`")]
    NoUser {
        /// The name.
        name: String,
    },
    /// The kernel side.
    #[error(transparent)]
    Kernel(#[from] crate::ebpf::Error),
    /// Cgroups.
    #[error(transparent)]
    Enroll(#[from] crate::enroll::Error),
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// The trust bundle.
    #[error(transparent)]
    Trust(#[from] crate::enroll::trust::TrustError),
    /// Names.
    #[error(transparent)]
    Names(#[from] crate::dns::Error),
    /// Records.
    #[error(transparent)]
    Records(#[from] records::Error),
    /// The worker.
    #[error(transparent)]
    Worker(#[from] worker_process::Error),
    /// The worker did not begin to serve.
    #[error("the worker does not serve: {why}")]
    NotServing {
        /// What happened.
        why: String,
    },
    /// The system refused.
    #[error("can't {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
}

fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Io { what, path, source }
}

/// Runs the agent until it is told to stop.
///
/// # Errors
/// If it can't be started, says what stands in the way. Workloads that were armed stay held.
pub async fn run(config: Config) -> Result<(), Error> {
    let _locks = ground::take(&config)?;
    let (mut supervisor, receiver) = Supervisor::start(config).await?;
    systemd::ready(&supervisor.summary());
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "{}", supervisor.summary());
    supervisor.serve(receiver).await
}

struct Supervisor {
    config: Config,
    user: Unprivileged,
    roots: Vec<Vec<u8>>,
    trust: Trust,
    policy: Arc<Policy>,
    sources: Vec<Source>,
    generation: u64,
    reload_error: Option<String>,
    keepers: Vec<Keeper>,
    capture: Capture,
    records: Records,
    kernel_log: KernelLog,
    answers: Answers,
    worker: WorkerProcess,
    backoff: Backoff,
    figures: channel::Figures,
    admin: mpsc::Receiver<Request>,
    _server: Server,
    started: SystemTime,
}

impl Supervisor {
    async fn start(config: Config) -> Result<(Self, Receiver), Error> {
        let user = unprivileged(&config.worker_user)?;
        let root = tls::ca::Root::load_or_create(&config.state_dir.join("ca.pem"), SystemTime::now())?;
        let trust = write_bundle(root.certificate_pem(), &config.runtime_dir.join("trust"))?;
        let roots = tls::upstream::Roots::read(&config.upstream_ca)?;
        let Loaded { policy, sources } = store::load_dir(&config.policy_dir);
        let policy = Arc::new(policy.map_err(Error::Policy)?);
        let mut keepers: Vec<Keeper> = policy.credentials().cloned().map(Keeper::new).collect();
        settle(&mut keepers).await;
        // All that an operator can have got wrong comes before the kernel side, which outlives a failed start.
        let socket = Socket::bind(&config.admin_socket)?;
        let mut records = Records::open(&config)?;
        let mut capture = Capture::start(&config)?;
        capture.arm_all(&policy)?;
        let answers = Answers::new(&capture, Arc::new(root), &policy);
        let (server, admin) = socket.serve(capture.parent());
        let (worker, receiver) = WorkerProcess::start(Path::new("/proc/self/exe"), user)?;
        records.next_table()?;
        let mut supervisor = Self {
            config,
            user,
            roots,
            trust,
            policy,
            sources,
            generation: 1,
            reload_error: None,
            keepers,
            capture,
            records,
            kernel_log: KernelLog::default(),
            answers,
            worker,
            backoff: Backoff::default(),
            figures: channel::Figures::default(),
            admin,
            _server: server,
            started: SystemTime::now(),
        };
        let receiver = supervisor.hand_over(receiver).await?;
        supervisor.capture.mark_armed()?;
        Ok((supervisor, receiver))
    }

    fn summary(&self) -> String {
        let workloads = self.policy.workloads().len();
        format!(
            "policy generation {} in force, {workloads} workloads held",
            self.generation
        )
    }

    /// Gives a new worker everything, and waits until it serves.
    async fn hand_over(&mut self, mut receiver: Receiver) -> Result<Receiver, Error> {
        let sender = self.worker.sender().clone();
        let start = self.start_message()?;
        let descriptors = self.records.descriptors(self.capture.worker_fds()?)?;
        let gone = |_gone| Error::NotServing {
            why: "it ended at once; its reason is above".into(),
        };
        sender.start(start, descriptors).await.map_err(gone)?;
        sender.send(self.policy_message()).await.map_err(gone)?;
        for update in self.keepers.iter().filter_map(Keeper::current) {
            sender.send(credential(update)).await.map_err(gone)?;
        }
        for offer in self.capture.listeners()? {
            offer.to(&sender).await.map_err(gone)?;
        }
        let ready = async {
            loop {
                match receiver.next().await {
                    Ok(Some(ToSupervisor::Ready)) => return Ok(()),
                    Ok(Some(ToSupervisor::Fault { message })) => return Err(message),
                    Ok(Some(message)) => self.answers.take(message, &sender),
                    Ok(None) => return Err("it ended before it was ready".to_owned()),
                    Err(breach) => return Err(breach.to_string()),
                }
            }
        };
        match tokio::time::timeout(START_LIMIT, ready).await {
            Ok(Ok(())) => Ok(receiver),
            Ok(Err(why)) => Err(Error::NotServing { why }),
            Err(_elapsed) => Err(Error::NotServing {
                why: "it was not ready in time".into(),
            }),
        }
    }

    fn start_message(&self) -> Result<channel::Start, Error> {
        let names = Names::of_host(&self.config.resolvers)?;
        Ok(channel::Start {
            threads: u16::try_from(self.config.thread_count()).unwrap_or(u16::MAX),
            limits: channel::Limits::from(&self.config.limits),
            upstream_roots: self.roots.clone(),
            resolvers: names.resolvers,
            hosts: names.hosts,
            query_values: self.config.audit.query_values == QueryValues::Plain,
            slots_per_workload: records::SLOTS_PER_WORKLOAD,
        })
    }

    fn policy_message(&self) -> ToWorker {
        let sources = self.sources.iter().map(|source| PolicySource {
            name: source.name.to_string(),
            text: source.text.to_string(),
        });
        ToWorker::Policy {
            generation: self.generation,
            sources: sources.collect(),
        }
    }

    async fn serve(&mut self, mut receiver: Receiver) -> Result<(), Error> {
        let mut terminate = on(SignalKind::terminate())?;
        let mut interrupt = on(SignalKind::interrupt())?;
        let mut hangup = on(SignalKind::hangup())?;
        let mut replace = on(SignalKind::user_defined2())?;
        let mut tick = tokio::time::interval(TICK);
        let mut events = tokio::time::interval(EVENTS);
        loop {
            tokio::select! {
                message = receiver.next() => match message {
                    Ok(Some(message)) => self.take(message),
                    Ok(None) => receiver = self.worker_died("it ended").await?,
                    Err(breach) => receiver = self.worker_died(&breach.to_string()).await?,
                },
                Some(request) = self.admin.recv() => self.answer(request).await,
                _ = tick.tick() => self.look_around().await,
                _ = events.tick() => self.read_events(),
                _ = hangup.recv() => { systemd::reloading(); self.reload().await; systemd::ready(&self.summary()); }
                _ = replace.recv() => receiver = self.replace_worker().await?,
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
        }
        self.stop(receiver).await
    }

    fn take(&mut self, message: ToSupervisor) {
        match message {
            ToSupervisor::Status { figures, .. } => self.figures = figures,
            ToSupervisor::Fault { message } => tracing::error!(message, "the worker reports a fault"),
            ToSupervisor::Ready | ToSupervisor::Drained => {}
            ToSupervisor::PolicyApplied { generation } => tracing::info!(generation, "policy in force"),
            question @ (ToSupervisor::Identify { .. }
            | ToSupervisor::Executable { .. }
            | ToSupervisor::Intermediate { .. }) => {
                self.answers.take(question, &self.worker.sender().clone())
            }
        }
    }

    /// A worker that ended on its own: its open calls become records, another one takes over. Connections wait
    /// at the listeners, which stay open, or are refused once the liveness word is stale.
    async fn worker_died(&mut self, why: &str) -> Result<Receiver, Error> {
        tracing::error!(why, "the worker is gone; starting another");
        let pause = self.backoff.after(self.worker.age());
        tokio::time::sleep(pause).await;
        self.new_worker().await
    }

    /// The new worker takes over the listeners before the old one lets go of them.
    async fn replace_worker(&mut self) -> Result<Receiver, Error> {
        let (worker, receiver) = WorkerProcess::start(Path::new("/proc/self/exe"), self.user)?;
        let old = std::mem::replace(&mut self.worker, worker);
        let table = self.records.next_table()?;
        let receiver = self.hand_over(receiver).await?;
        if let Err(error) = old.retire(DRAIN).await {
            tracing::error!(%error, "the old worker could not be ended");
        }
        self.records.recover(table)?;
        Ok(receiver)
    }

    async fn new_worker(&mut self) -> Result<Receiver, Error> {
        let (worker, receiver) = WorkerProcess::start(Path::new("/proc/self/exe"), self.user)?;
        // Dropping the old handle kills and reaps what may be left of the process.
        let old = std::mem::replace(&mut self.worker, worker);
        if let Err(error) = old.retire(Duration::ZERO).await {
            tracing::error!(%error, "the old worker could not be ended");
        }
        let table = self.records.next_table()?;
        self.records.recover(table)?;
        self.hand_over(receiver).await
    }

    async fn look_around(&mut self) {
        for update in self
            .keepers
            .iter_mut()
            .filter_map(Keeper::poll)
            .collect::<Vec<_>>()
        {
            if self.worker.sender().send(credential(update)).await.is_err() {
                tracing::warn!("a credential could not be handed to the worker; its successor gets it");
            }
        }
        self.capture.look_after(&mut self.records);
        if let Err(error) = self.records.settle() {
            tracing::error!(%error, "calls of a worker that ended can't be recorded");
        }
        match self.records.rotate() {
            Ok(Some(file)) => {
                if self.worker.sender().audit_file(file).await.is_err() {
                    tracing::warn!("the new audit file could not be handed to the worker");
                }
            }
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "the audit file can't be rotated"),
        }
        if self
            .worker
            .sender()
            .send(ToWorker::Status { request: 0 })
            .await
            .is_ok()
        {
            systemd::alive();
        }
    }

    fn read_events(&mut self) {
        let reports = self.capture.reports();
        self.kernel_log.tell(&reports, Instant::now());
        let in_force = (self.policy.as_ref(), self.generation);
        self.records
            .kernel(&reports, &self.capture, in_force, self.answers.resolver());
    }

    async fn answer(&mut self, request: Request) {
        match request {
            Request::Status(reply) => reply.send(self.status()),
            Request::Reload(reply) => reply.send(self.reload().await),
            Request::Enroll {
                peer,
                workload,
                reply,
            } => {
                reply.send(self.capture.enroll(&peer, &workload, &self.policy, &self.trust));
            }
        }
    }

    async fn stop(&mut self, mut receiver: Receiver) -> Result<(), Error> {
        systemd::stopping();
        tracing::info!("stopping; what is managed stays held until the agent runs again or is released");
        if self.worker.drain(DRAIN).await.is_err() {
            tracing::warn!("the worker was gone before it could drain");
        }
        let drained = async {
            while let Ok(Some(message)) = receiver.next().await {
                self.take(message);
            }
        };
        if tokio::time::timeout(DRAIN + Duration::from_secs(6), drained)
            .await
            .is_err()
        {
            tracing::error!("the worker did not end in time; it is killed");
        }
        self.read_events();
        let table = self.records.next_table()?;
        self.records.recover(table)?;
        Ok(())
    }
}

fn on(kind: SignalKind) -> Result<Signal, Error> {
    signal(kind).map_err(io("catch", Path::new("signals")))
}

fn unprivileged(name: &str) -> Result<Unprivileged, Error> {
    let found = nix::unistd::User::from_name(name).ok().flatten();
    let user = found.ok_or_else(|| Error::NoUser {
        name: name.to_owned(),
    })?;
    Ok(Unprivileged {
        uid: user.uid.as_raw(),
        gid: user.gid.as_raw(),
    })
}

/// Looks at all sources side by side: a slow helper must not keep another credential waiting.
/// First values. Who waits here answers nobody meanwhile; a slow helper's value comes later.
async fn settle(keepers: &mut [Keeper]) {
    let settling = keepers.iter_mut().map(|keeper| keeper.settle(FIRST_VALUES));
    futures_util::future::join_all(settling).await;
}

fn credential(update: Update) -> ToWorker {
    let state = match update.value {
        Value::Ready { secret, version } => CredentialState::Available {
            value: secret.for_channel(),
            version,
        },
        Value::Unavailable { reason } => CredentialState::Unavailable {
            reason: reason.to_string(),
        },
    };
    ToWorker::Credential {
        name: update.name.to_string().into(),
        state,
    }
}

impl From<&crate::config::Limits> for channel::Limits {
    fn from(limits: &crate::config::Limits) -> Self {
        let millis = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        let size = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        Self {
            client_hello_bytes: size(limits.client_hello_size),
            client_hello_ms: millis(limits.client_hello_timeout),
            detection_ms: millis(limits.detect_timeout),
            header_bytes: size(limits.headers_size),
            header_fields: size(limits.headers_count),
            header_ms: millis(limits.headers_timeout),
            idle_ms: millis(limits.idle_timeout),
            write_stall_ms: millis(limits.write_timeout),
            connect_ms: millis(limits.connect_timeout),
            answer_ms: millis(limits.answer_timeout),
            h2_streams: limits.h2_streams,
            h2_resets: limits.h2_resets,
            h2_reset_window_ms: millis(limits.h2_resets_window),
            connections: size(limits.connections),
            buffer_bytes: limits.buffers_size as u64,
            body_bytes: size(limits.body_size),
        }
    }
}
