//! Who is calling: the facts that policy may ask about, as plain values.
//!
//! A fact that could not be proven is `None`, and policy treats it as "no" in an allow and as "yes" in a
//! deny. Nothing here reads the system; `identity::resolve` does.

pub mod cgroup;
pub mod executable;
mod forked;
pub mod members;
pub mod process;
pub mod resolve;
pub mod unit;
pub mod users;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A workload's name as the policy has it: `[a-z0-9][a-z0-9_-]{0,47}` (it becomes part of a slice's name).
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct WorkloadName(Arc<str>);

/// A text that can't name a workload.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a workload's name is 1 to 48 of a-z, 0-9, '-' and '_', and starts with a letter or digit")]
pub struct WorkloadNameError;

impl WorkloadName {
    /// Reads a workload's name.
    ///
    /// # Errors
    /// If the text has another form than the type's definition.
    pub fn parse(text: &str) -> Result<Self, WorkloadNameError> {
        let starts = text
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let rest = text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_');
        if starts && rest && text.len() <= 48 {
            Ok(Self(text.into()))
        } else {
            Err(WorkloadNameError)
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of the workload's slice, and of its cgroup directory: `callgate-NAME.slice`.
    ///
    /// systemd reads '-' in a slice's name as nesting, and workloads don't nest, so it is escaped as
    /// systemd.unit(5) says (`\x2d`).
    #[must_use]
    pub fn slice(&self) -> String {
        format!("callgate-{}.slice", self.0.replace('-', "\\x2d"))
    }

    /// The workload whose cgroup has this name.
    #[must_use]
    pub fn of_slice(slice: &str) -> Option<Self> {
        let name = slice.strip_prefix("callgate-")?.strip_suffix(".slice")?;
        let name = Self::parse(&name.replace("\\x2d", "-")).ok()?;
        (name.slice() == slice).then_some(name)
    }
}

impl fmt::Display for WorkloadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for WorkloadName {
    type Error = WorkloadNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<WorkloadName> for String {
    fn from(name: WorkloadName) -> Self {
        name.0.as_ref().to_owned()
    }
}

/// Everything that is known about the caller of one connection.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Identity {
    /// From the kernel: the slice that the caller's cgroup lies below.
    pub workload: WorkloadName,
    /// From the kernel: the caller's cgroup.
    pub cgroup: Cgroup,
    /// The systemd unit that PID 1 made this cgroup for; never read from below a delegation boundary.
    pub unit: Option<Arc<str>>,
    /// systemd's InvocationID of that unit.
    pub invocation: Option<Arc<str>>,
    /// The container's id where the path shows one.
    pub container: Option<Arc<str>>,
    /// From the kernel: the user of the calling thread.
    pub uid: u32,
    /// From the kernel: the group of the calling thread.
    pub gid: u32,
    /// The user's name, if the host's user database has one.
    pub user: Option<Arc<str>>,
    /// The process as the kernel recorded it when it connected; `None` if its number means nothing in the
    /// agent's pid namespace.
    pub process: Option<Process>,
    /// The executable, if `/proc` and the kernel's origin agree on it while the process still runs. (Device
    /// and inode that the kernel alone reported are in the claim, for the record.)
    pub executable: Option<Executable>,
    /// From the kernel: the caller's network namespace.
    pub netns_cookie: u64,
}

/// A control group.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Cgroup {
    /// The kernel's id (the directory's inode number).
    pub id: u64,
    /// Its path below the cgroup v2 mount, `/callgate.slice/...`; `None` once it is gone.
    pub path: Option<Arc<str>>,
}

/// A process, told apart from a later one with the same number by its start time.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Process {
    /// The process id (thread group id) in the agent's pid namespace.
    pub pid: u32,
    /// When it started: nanoseconds of CLOCK_BOOTTIME, as the kernel recorded it.
    pub start_time: u64,
    /// The calling thread's name; the caller chooses it, so no rule may ask for it.
    pub comm: Arc<str>,
}

/// The file that a process runs.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Executable {
    /// Its path in the agent's mount namespace; `None` if the file was deleted or replaced, or if that path
    /// leads the agent to another file (the process has mounts of its own: a container, a bind mount).
    pub path: Option<PathBuf>,
    /// The file system's device number as stat(2) shows it.
    pub device: u64,
    /// The inode number.
    pub inode: u64,
    /// SHA-256 of the content; only read where a rule asks for it.
    pub sha256: Option<Sha256>,
}

/// A SHA-256 digest; shown and read as 64 hex digits.
#[derive(Clone, Copy, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct Sha256(pub [u8; 32]);

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
