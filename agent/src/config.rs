//! The agent's own settings, validated and immutable.
//!
//! The file is optional and so is every key: what is not given has the value that `config/default.toml` shows.

pub mod file;
mod limits;
pub mod shipped;
pub mod validate;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::policy::{Diagnostic, Source, store};

/// Where the settings are unless the command line says otherwise.
pub const DEFAULT_PATH: &str = "/etc/callgate/callgate.toml";

/// The file that `callgate` ships as `/etc/callgate/callgate.toml`: every key with its default, as [`shipped::text`] makes it.
pub const DEFAULT_FILE: &str = include_str!("../config/default.toml");

/// The largest settings file, in bytes.
const MAX_FILE: usize = 1024 * 1024;

/// The agent's settings.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Config {
    /// Where the settings were read from, or would be.
    pub file: PathBuf,
    /// Directory of `*.toml` policy files.
    pub policy_dir: PathBuf,
    /// What must outlive a reboot: the CA.
    pub state_dir: PathBuf,
    /// What must not.
    pub runtime_dir: PathBuf,
    /// The admin socket.
    pub admin_socket: PathBuf,
    /// Where BPF links and maps are pinned; below a bpffs mount.
    pub bpffs_dir: PathBuf,
    /// The parent of all workloads' cgroups: a path below the cgroup v2 mount without a leading slash.
    pub cgroup_parent: String,
    /// The user that the worker runs as; never root.
    pub worker_user: String,
    /// Data threads; 0 is one for each core ([`Config::thread_count`]).
    pub threads: usize,
    /// How often a connect from inside each workload proves that it is captured.
    pub canary_interval: Duration,
    /// The least severe level that is logged.
    pub log_level: LogLevel,
    /// DNS servers; empty for those in /etc/resolv.conf.
    pub resolvers: Vec<SocketAddr>,
    /// PEM files with further roots for upstreams.
    pub upstream_ca: Vec<PathBuf>,
    /// The audit log.
    pub audit: Audit,
    /// What is too much.
    pub limits: Limits,
}

/// Levels of the agent's own log, from the most severe.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LogLevel {
    /// Something is broken.
    Error,
    /// Something should be looked at.
    Warn,
    /// What an operator wants to know of a good day.
    Info,
    /// For finding a fault.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// All, the most severe first.
    pub const ALL: [Self; 5] = [Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];

    /// The word for it, which tracing's filters read too.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// The audit log's settings.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Audit {
    /// The file that records go to.
    pub file: PathBuf,
    /// The size in bytes at which a new file is begun.
    pub max_size: u64,
    /// How many finished files are kept.
    pub keep: u32,
    /// What records show of queries.
    pub query_values: QueryValues,
}

/// What records show of a query's values.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum QueryValues {
    /// Their keys alone.
    Redacted,
    /// All of it, secrets that clients put there included.
    Plain,
}

/// What one peer or workload may use up; over it comes a clear refusal. Sizes in bytes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Limits {
    /// A ClientHello's size.
    pub client_hello_size: usize,
    /// The time for a ClientHello to come in whole.
    pub client_hello_timeout: Duration,
    /// A request's headers together.
    pub headers_size: usize,
    /// How many header fields.
    pub headers_count: usize,
    /// The time for headers to come in whole.
    pub headers_timeout: Duration,
    /// How long a connection may be idle.
    pub idle_timeout: Duration,
    /// How long a peer may take no byte that we have for it.
    pub write_timeout: Duration,
    /// The time for a connection to an upstream, TLS included.
    pub connect_timeout: Duration,
    /// How long an upstream may let the head of its answer wait while it takes nothing of the request.
    pub answer_timeout: Duration,
    /// Streams at once on an HTTP/2 connection.
    pub h2_streams: u32,
    /// Resets on an HTTP/2 connection within [`Limits::h2_resets_window`].
    pub h2_resets: u32,
    /// See [`Limits::h2_resets`].
    pub h2_resets_window: Duration,
    /// A workload's connections at once.
    pub connections: usize,
    /// A workload's calls under way at once.
    pub calls: u32,
    /// A workload's buffers together.
    pub buffers_size: usize,
    /// The time for the first bytes that tell the protocol.
    pub detect_timeout: Duration,
    /// The share of the unit's MemoryMax, in percent, from which on new connections are refused.
    pub memory_percent: u8,
}

/// Settings with errors.
#[derive(Debug)]
pub struct Faulty {
    /// Everything that is wrong, sorted by place.
    pub found: Vec<Diagnostic>,
    /// What the findings quote.
    pub source: Source,
    /// What could be read, with defaults for the rest: good to look further for errors, not to run with.
    pub readable: Box<Config>,
}

impl Config {
    /// The agent's root, with its key.
    #[must_use]
    pub fn root_file(&self) -> PathBuf {
        self.state_dir.join("ca.pem")
    }

    /// Reads the settings; a file that is not there at the default place means the defaults.
    ///
    /// # Errors
    /// Everything that is wrong with the file.
    pub fn load(path: &Path) -> Result<(Self, Source), Faulty> {
        let empty = Source::new(&path.display().to_string(), "");
        if path == Path::new(DEFAULT_PATH) && !path.exists() {
            return Ok((Self::default(), empty));
        }
        let source = store::read_file(path, MAX_FILE).map_err(|error| Faulty {
            found: vec![*error],
            source: empty,
            readable: Box::default(),
        })?;
        match Self::read(&source) {
            (config, found) if found.is_empty() => {
                let file = path.to_owned();
                Ok((Self { file, ..config }, source))
            }
            (config, found) => Err(Faulty {
                found,
                source,
                readable: Box::new(config),
            }),
        }
    }

    /// Reads the settings from a text.
    ///
    /// # Errors
    /// Everything that is wrong with it, sorted by place.
    pub fn parse(source: &Source) -> Result<Self, Vec<Diagnostic>> {
        match Self::read(source) {
            (config, found) if found.is_empty() => Ok(config),
            (_, found) => Err(found),
        }
    }

    fn read(source: &Source) -> (Self, Vec<Diagnostic>) {
        let (file, mut found) = file::read(source);
        let config = validate::validate(source, file, &mut found);
        found.sort();
        (config, found)
    }

    /// How many data threads to run.
    #[must_use]
    pub fn thread_count(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        if self.threads == 0 { cores() } else { self.threads }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            file: DEFAULT_PATH.into(),
            policy_dir: "/etc/callgate/policy.d".into(),
            state_dir: "/var/lib/callgate".into(),
            runtime_dir: "/run/callgate".into(),
            admin_socket: "/run/callgate/admin.sock".into(),
            bpffs_dir: "/sys/fs/bpf/callgate".into(),
            cgroup_parent: "callgate.slice".to_owned(),
            worker_user: "callgate".to_owned(),
            threads: 0,
            canary_interval: Duration::from_secs(60),
            log_level: LogLevel::Info,
            resolvers: Vec::new(),
            upstream_ca: Vec::new(),
            audit: Audit::default(),
            limits: Limits::default(),
        }
    }
}

impl Default for Audit {
    fn default() -> Self {
        Self {
            file: "/var/log/callgate/audit.jsonl".into(),
            max_size: 100 * 1024 * 1024,
            keep: 10,
            query_values: QueryValues::Redacted,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            client_hello_size: 64 * 1024,
            client_hello_timeout: Duration::from_secs(10),
            headers_size: 64 * 1024,
            headers_count: 100,
            headers_timeout: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(300),
            write_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(300),
            h2_streams: 100,
            h2_resets: 200,
            h2_resets_window: Duration::from_secs(10),
            connections: 1024,
            calls: 2048,
            buffers_size: 64 * 1024 * 1024,
            detect_timeout: Duration::from_secs(5),
            memory_percent: 90,
        }
    }
}

#[cfg(test)]
mod tests;
