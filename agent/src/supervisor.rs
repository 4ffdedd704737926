//! The privileged process: start order, reload, stop. Parses nothing from the network.
//!
//! Start: settings, CA, policy, credentials, what the last run left in the in-flight table, kernel programs,
//! listeners and workloads, worker, ready. From the moment a workload is armed it is held, whether or not a
//! worker serves it. Stop: the worker drains; pins stay, so what is managed stays held. Where the service manager keeps
//! the listeners, the next agent need not wait for that (`departure`).

pub mod answers;
pub mod canary;
pub mod capture;
mod crew;
mod departure;
mod error;
mod foreign;
pub mod ground;
mod headroom;
mod kernel_log;
mod left;
pub mod records;
mod reload;
mod report;
pub mod sandbox;
mod signals;
mod succession;
mod turns;
pub mod uninstall;
pub mod view;
pub mod worker_process;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc;

use crate::admin::server::{Request, Server, Socket};
use crate::channel::{self, CredentialState, PolicySource, ToWorker};
use crate::config::{Config, QueryValues};
use crate::credential::source::{Keeper, Update, Value};
use crate::dns::resolver::Settings as Names;
use crate::enroll::trust::{self, Trust};
use crate::memory;
use crate::policy::store::{self, Loaded};
use crate::policy::{CredentialName, Policy, Source};
use crate::systemd;
use crate::systemd::store::Store;
use crate::tls;

use answers::Answers;
use canary::Canaries;
use capture::{Capture, Change};
use crew::{Crew, Drain, Role};
use departure::Baton;
pub use error::Error;
use error::io;
use headroom::Headroom;
use kernel_log::KernelLog;
use records::Records;
use sandbox::Unprivileged;
use signals::Signals;

/// How long calls may go on when a worker is replaced. Its idle connections stay for their clients' next requests,
/// which are answered and then closed: a client that meets a connection closed under its hands may not try again.
const REPLACED: Drain = Drain {
    deadline: Duration::from_secs(20),
    idle: Duration::from_secs(10),
};
/// How long calls may go on when the agent stops: nobody would take up what idle connections bring.
const STOPPED: Drain = Drain {
    deadline: Duration::from_secs(20),
    idle: Duration::ZERO,
};
/// How long the last worker may take to end, its records included.
const STOP_LIMIT: Duration = Duration::from_secs(28);
/// How long start and reload wait for the first values of credentials.
const FIRST_VALUES: Duration = Duration::from_secs(3);
/// Where below the runtime directory the roots for workloads are.
pub const TRUST_DIR: &str = "trust";
/// How often sources, pins and leftovers are looked at.
const TICK: Duration = Duration::from_millis(500);
/// How often the kernel's refusals are read.
const EVENTS: Duration = Duration::from_millis(50);

/// Runs the agent until it is told to stop.
///
/// # Errors
/// If it can't be started, says what stands in the way. Workloads that were armed stay held.
pub async fn run(config: Config) -> Result<(), Error> {
    // Whoever starts a service may tell it something before it is ready, and must not end it thereby.
    let signals = Signals::catch()?;
    capture::raise_descriptor_limit();
    // Before anything is started: until then these descriptors pass to whatever this process starts, as credential helpers.
    let store = Store::open();
    let _locks = ground::take(&config)?;
    let mut supervisor = Supervisor::start(config, store).await?;
    memory::give_back();
    systemd::ready(&supervisor.summary());
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "{}", supervisor.summary());
    supervisor.serve(signals).await
}

struct Supervisor {
    config: Config,
    user: Unprivileged,
    roots: Vec<Vec<u8>>,
    roots_watch: trust::Watch,
    trust: Trust,
    policy: Arc<Policy>,
    sources: Vec<Source>,
    generation: u64,
    reload_error: Option<String>,
    keepers: Vec<Keeper>,
    capture: Capture,
    canaries: Canaries,
    headroom: Headroom,
    records: Records,
    kernel_log: KernelLog,
    answers: Arc<Answers>,
    crew: Crew,
    worker_error: Option<String>,
    admin: mpsc::Receiver<Request>,
    _server: Server,
    started: SystemTime,
}

impl Supervisor {
    async fn start(config: Config, store: Store) -> Result<Self, Error> {
        let user = unprivileged(&config.worker_user)?;
        let root = tls::ca::Root::load_or_create(&config.root_file(), SystemTime::now())?;
        let (roots_watch, trust) =
            trust::Watch::start(root.certificate_pem(), config.runtime_dir.join(TRUST_DIR))?;
        let roots = tls::upstream::Roots::read(&config.upstream_ca)?;
        let Loaded { policy, sources } = store::load_dir(&config.policy_dir);
        let policy = Arc::new(policy.map_err(Error::Policy)?);
        let mut keepers: Vec<Keeper> = policy.credentials().cloned().map(Keeper::new).collect();
        settle(&mut keepers, FIRST_VALUES).await;
        // All that an operator can have got wrong comes before the kernel side, which outlives a failed start.
        let socket = Socket::bind(&config.admin_socket)?;
        let mut records = Records::open(&config)?;
        records.end_left(policy.digest());
        let mut capture = Capture::start(&config, store, &mut records)?;
        let baton = Baton::take(capture.store());
        capture.arm_all(&policy)?;
        capture.store().forget_rest();
        let headroom = Headroom::of_self(capture.mount(), config.limits.memory_percent);
        let canaries = Canaries::new(config.canary_interval, user, capture.home());
        let answers = Answers::new(&capture, Arc::new(root), canaries.flights());
        let (server, admin) = socket.serve(capture.parent());
        let mut supervisor = Self {
            crew: Crew::new(REPLACED, config.log_level),
            canaries,
            config,
            user,
            roots,
            roots_watch,
            trust,
            policy,
            sources,
            generation: 1,
            reload_error: None,
            keepers,
            capture,
            headroom,
            records,
            kernel_log: KernelLog::default(),
            answers: Arc::new(answers),
            worker_error: None,
            admin,
            _server: server,
            started: SystemTime::now(),
        };
        supervisor.first_worker().await?;
        baton.done(supervisor.capture.store());
        supervisor.capture.mark_armed()?;
        Ok(supervisor)
    }

    fn summary(&self) -> String {
        let workloads = self.policy.workloads().len();
        format!(
            "policy generation {} in force, {workloads} workloads held",
            self.generation
        )
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
            slots_per_workload: self.config.limits.calls,
            netns: self.capture.home(),
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

    async fn serve(&mut self, mut signals: Signals) -> Result<(), Error> {
        let mut tick = tokio::time::interval(TICK);
        let mut events = tokio::time::interval(EVENTS);
        let mut code = tokio::time::interval(memory::CODE_SPAN);
        let bell = self.capture.bell();
        let bell = bell.map_err(io("wait for", Path::new("the kernel's events")))?;
        let moved = self.capture.moved();
        loop {
            tokio::select! {
                happened = self.crew.next() => self.heed(happened),
                Some(request) = self.admin.recv() => self.answer(request).await,
                _ = tick.tick() => self.look_around(),
                _ = events.tick() => self.read_events(false),
                _ = code.tick() => memory::unmap_code(),
                () = bell.rung() => self.read_events(false),
                () = moved.notified() => self.keep_spaces(),
                _ = signals.hangup.recv() => { systemd::reloading(); self.reload().await; systemd::ready(&self.summary()); }
                _ = signals.replace.recv() => self.replace_worker(),
                _ = signals.terminate.recv() => break,
                _ = signals.interrupt.recv() => break,
            }
        }
        self.stop().await
    }

    fn look_around(&mut self) {
        for keeper in &mut self.keepers {
            if keeper.poll().is_none() {
                continue;
            }
            self.crew.tell(|worker, _role| match keeper.current() {
                Some(update) => Ok(worker.send(credential(update))?),
                None => Ok(()),
            });
        }
        self.follow_roots();
        self.capture.look_after(&mut self.records);
        self.look_after_canaries();
        if let Err(error) = self.records.settle() {
            tracing::error!(%error, "calls of a worker that ended can't be recorded");
        }
        self.records.end_overdue();
        match self.records.rotate() {
            Ok(true) => self
                .crew
                .tell(|worker, _role| Ok(worker.audit_file(self.records.file()?)?)),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "the audit file can't be rotated"),
        }
        if self.headroom.look() {
            let short = self.headroom.is_short();
            self.crew
                .tell(|worker, _role| Ok(worker.send(ToWorker::Memory { short })?));
        }
        self.crew.look_after();
        systemd::alive();
    }

    /// The host's roots may change while managed programs run, and upstreams are verified by them too.
    fn follow_roots(&mut self) {
        let known = self.roots_watch.failure().map(str::to_owned);
        match self.roots_watch.look() {
            Ok(None) => return,
            Ok(Some(trust)) => self.trust = trust,
            Err(error) => {
                // Once for each reason: it is tried every two seconds.
                if known.as_deref() != self.roots_watch.failure() {
                    tracing::error!(%error, "the host's roots changed, and the bundle for workloads can't be renewed; it is tried again");
                }
                return;
            }
        }
        tracing::info!(
            host_roots = self.trust.host_roots,
            "the host's roots changed: the bundle for workloads is renewed"
        );
        match tls::upstream::Roots::read(&self.config.upstream_ca) {
            Ok(roots) if roots == self.roots => {}
            Ok(roots) => {
                self.roots = roots;
                let certificates = &self.roots;
                self.crew.tell(|worker, _role| {
                    let certificates = certificates.clone();
                    Ok(worker.send(ToWorker::Roots { certificates })?)
                });
            }
            Err(error) => {
                self.roots_watch.again(&error);
                tracing::error!(%error, "upstreams are verified by the roots from before; it is tried again");
            }
        }
    }

    fn read_events(&mut self, last: bool) {
        let reports = self.capture.reports(last);
        self.keep_spaces();
        self.kernel_log.tell(&reports, Instant::now());
        self.kernel_log.tell_faults(self.capture.faults(), Instant::now());
        let in_force = (self.policy.as_ref(), self.generation);
        self.records
            .kernel(&reports, &self.capture, in_force, &self.answers, last);
    }

    /// Workers serve in each network namespace that workloads are in, and hold nothing in those that they have left.
    fn keep_spaces(&mut self) {
        for change in self.capture.keep_spaces() {
            if let Change::Closed { number, netns, .. } = &change {
                self.canaries.forget(*number, *netns);
            }
            self.crew.tell(|worker, role| {
                match &change {
                    Change::Opened { .. } if role == Role::Leaving => {}
                    Change::Opened { number, inode } => {
                        for offer in self.capture.listeners_in(*number, *inode)? {
                            offer.to(worker)?;
                        }
                    }
                    Change::Closed { workload, netns, .. } => worker.send(ToWorker::Unlisten {
                        workload: workload.clone(),
                        netns: *netns,
                    })?,
                }
                Ok(())
            });
        }
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
                let enrolled = self.capture.enroll(&peer, &workload, &self.policy, &self.trust);
                // Where it is, it is served before it knows.
                self.keep_spaces();
                reply.send(enrolled);
            }
            Request::Release {
                workload,
                running,
                reply,
            } => reply.send(self.release(&workload, running)),
        }
    }

    async fn stop(&mut self) -> Result<(), Error> {
        systemd::stopping();
        tracing::info!("stopping; what is managed stays held until the agent runs again or is released");
        if !self.capture.guard_perimeter(&mut self.records) {
            tracing::error!(
                "stopped like this for good, the agent holds nothing: workloads go out unchecked as soon as its last process has ended, unless it is started before"
            );
        }
        if !self.can_leave() || self.leave().await.is_err() {
            self.wait_for_workers().await;
        }
        self.read_events(true);
        self.records.last_facts().await;
        Ok(())
    }

    async fn wait_for_workers(&mut self) {
        self.crew.retire(STOPPED);
        let ended = async {
            while !self.crew.is_empty() {
                let happened = self.crew.next().await;
                self.heed(happened);
            }
        };
        if tokio::time::timeout(STOP_LIMIT, ended).await.is_err() {
            tracing::error!("a worker does not end; its open calls are recorded by the next start");
        }
    }
}

fn unprivileged(name: &str) -> Result<Unprivileged, Error> {
    let found = nix::unistd::User::from_name(name).ok().flatten();
    let user = found.ok_or_else(|| Error::NoUser {
        name: name.to_owned(),
    })?;
    // One could then signal and read the other.
    if user.uid == nix::unistd::geteuid() && !user.uid.is_root() {
        return Err(Error::SameUser { name: user.name });
    }
    Ok(Unprivileged {
        uid: user.uid.as_raw(),
        gid: user.gid.as_raw(),
    })
}

/// Values, all sources side by side: a slow helper must not keep another credential waiting. Who waits here answers
/// nobody meanwhile; a value that takes longer than `limit` comes later.
async fn settle(keepers: &mut [Keeper], limit: Duration) {
    let settling = keepers.iter_mut().map(|keeper| keeper.settle(limit));
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

fn unread(name: &CredentialName) -> ToWorker {
    ToWorker::Credential {
        name: name.to_string().into(),
        state: CredentialState::Unavailable {
            reason: "it has not been read yet".into(),
        },
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
        }
    }
}
