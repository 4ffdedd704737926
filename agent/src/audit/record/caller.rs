//! Who called, as records tell it.

use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Deserializer, Serialize};

use super::text;
use crate::identity::{Cgroup, Identity, WorkloadName};

/// Who called, as far as it was proven.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Caller {
    /// The workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<WorkloadName>,
    /// The systemd unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<Arc<str>>,
    /// Its InvocationID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invocation: Option<Arc<str>>,
    /// The control group's id and path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<Cgroup>,
    /// The container's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<Arc<str>>,
    /// The process id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// When the process started, nanoseconds of CLOCK_BOOTTIME.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<u64>,
    /// The user id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The group id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// The user's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Arc<str>>,
    /// The command's name, which the caller chooses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comm: Option<Arc<str>>,
    /// The executable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exe: Option<Exe>,
}

/// The file that the caller runs.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Exe {
    /// Its path; a byte that is no UTF-8 stands as `\xNN`. Absent if the file was deleted or replaced, or is
    /// another one where the agent looks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<Arc<str>>,
    /// The file system's device number.
    pub device: u64,
    /// The inode number.
    pub inode: u64,
    /// SHA-256, 64 hex digits, where a rule asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Arc<str>>,
}

impl From<&Identity> for Caller {
    fn from(identity: &Identity) -> Self {
        let process = identity.process.as_ref();
        Self {
            workload: Some(identity.workload.clone()),
            unit: identity.unit.clone(),
            invocation: identity.invocation.clone(),
            cgroup: Some(identity.cgroup.clone()),
            container: identity.container.clone(),
            pid: process.map(|p| p.pid),
            start_time: process.map(|p| p.start_time),
            uid: Some(identity.uid),
            gid: Some(identity.gid),
            user: identity.user.clone(),
            comm: process.map(|p| Arc::clone(&p.comm)),
            exe: identity.executable.as_ref().map(|exe| Exe {
                path: exe.path.as_deref().map(|path| text::path(path).into()),
                device: exe.device,
                inode: exe.inode,
                sha256: exe.sha256.map(|digest| digest.to_string().into()),
            }),
        }
    }
}

/// A caller that many records share: most of each line is the caller, and it is put into words once.
#[derive(Clone, Debug)]
pub struct KnownCaller(Arc<Known>);

#[derive(Debug)]
struct Known {
    caller: Caller,
    words: OnceLock<Box<[u8]>>,
}

impl KnownCaller {
    /// The caller in words, which `write` finds when they are first asked for.
    ///
    /// # Errors
    /// Whatever `write` answers.
    pub(super) fn words<E>(&self, write: impl FnOnce(&Caller) -> Result<Box<[u8]>, E>) -> Result<&[u8], E> {
        if let Some(words) = self.0.words.get() {
            return Ok(words);
        }
        let words = write(&self.0.caller)?;
        Ok(self.0.words.get_or_init(|| words))
    }
}

impl From<Caller> for KnownCaller {
    fn from(caller: Caller) -> Self {
        let words = OnceLock::new();
        Self(Arc::new(Known { caller, words }))
    }
}

impl Deref for KnownCaller {
    type Target = Caller;

    fn deref(&self) -> &Caller {
        &self.0.caller
    }
}

impl PartialEq for KnownCaller {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<'de> Deserialize<'de> for KnownCaller {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Caller::deserialize(deserializer).map(Self::from)
    }
}
