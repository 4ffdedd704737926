//! Why the agent does not run, in the operator's words.

use std::path::{Path, PathBuf};

use crate::identity::WorkloadName;
use crate::policy::Diagnostic;

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
    #[error("another agent holds {path}{}; stop it first", process(*holder))]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// Its process, if it has said.
        holder: Option<u32>,
    },
    /// Workloads that were to be let go are in use.
    #[error(
        "processes run in {}; stop them, or let them go as they are (`--running`)",
        list(workloads)
    )]
    Occupied {
        /// Which.
        workloads: Vec<WorkloadName>,
    },
    /// The worker's user does not exist.
    #[error("there is no user {name:?} for the worker; create it, or set `worker_user`")]
    NoUser {
        /// The name.
        name: String,
    },
    /// The two processes would have one user.
    #[error(
        "the worker can't run as {name}, which is the supervisor's own user: set `worker_user` to another"
    )]
    SameUser {
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
    Tls(#[from] crate::tls::Error),
    /// The trust bundle.
    #[error(transparent)]
    Trust(#[from] crate::enroll::trust::TrustError),
    /// Names.
    #[error(transparent)]
    Names(#[from] crate::dns::Error),
    /// Records.
    #[error(transparent)]
    Records(#[from] super::records::Error),
    /// The worker.
    #[error(transparent)]
    Worker(#[from] super::worker_process::Error),
    /// A worker that takes no messages.
    #[error(transparent)]
    Gone(#[from] crate::channel::supervisor::WorkerGone),
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

/// An [`Error::Io`] for what was tried on `path`.
pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Io { what, path, source }
}

fn process(holder: Option<u32>) -> String {
    holder.map_or_else(String::new, |pid| format!(" (process {pid})"))
}

fn list(workloads: &[WorkloadName]) -> String {
    workloads
        .iter()
        .map(WorkloadName::as_str)
        .collect::<Vec<_>>()
        .join(", ")
}
