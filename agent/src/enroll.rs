//! Which cgroups are workloads: make, arm, let go.
//!
//! One directory `callgate-NAME.slice` below one parent for each workload. Where systemd runs, these are the
//! slices that it makes itself when a unit asks for them; made here first, systemd takes them as they are and
//! they keep their id. The supervisor owns this; nothing here knows what is attached to the directories.

mod commands;
mod leave;
pub mod mount;
pub mod reach;
pub mod trust;
pub mod unit;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use crate::identity::WorkloadName;
use crate::identity::process::ProcessError;
use crate::rights;

pub use commands::is_in_room;
pub use leave::{occupied, remove_all};
pub use mount::{Layout, Mount};

/// Why a workload can't be made, entered or let go.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No cgroup v2 mount.
    #[error(
        "no cgroup v2 file system is mounted; mount one with `mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified`, or boot with systemd.unified_cgroup_hierarchy=1"
    )]
    NoMount,
    /// The configured parent is no path below the mount.
    #[error(
        "cgroup_parent {path:?} must name a directory below the cgroup v2 mount, such as \"callgate.slice\""
    )]
    Parent {
        /// What was given.
        path: String,
    },
    /// The agent runs inside a workload and would capture itself.
    #[error(
        "the agent itself is in {path}, below the workloads' cgroup {parent}; start it elsewhere (its own unit, or a login shell)"
    )]
    InsideWorkload {
        /// The agent's cgroup.
        path: String,
        /// The workloads' parent.
        parent: String,
    },
    /// Not a workload that was added.
    #[error("there is no workload {name}")]
    Unknown {
        /// The name.
        name: WorkloadName,
    },
    /// More workloads than numbers.
    #[error("no number is left for workload {name}; restart the agent")]
    Numbers {
        /// The name.
        name: WorkloadName,
    },
    /// The name of an exec cgroup isn't plain.
    #[error("{id:?} can't name an exec cgroup; use letters, digits and '-'")]
    ExecId {
        /// The name.
        id: String,
    },
    /// The process ended, or another took its number.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The process isn't where it was put.
    #[error("process {pid} did not enter {path}")]
    NotEntered {
        /// Its number.
        pid: u32,
        /// The cgroup.
        path: String,
    },
    /// The system refused.
    #[error("can't {act} {}: {source}", path.display())]
    Io {
        /// What was tried.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// One workload's cgroup.
#[derive(Debug)]
pub struct Workload {
    number: u32,
    name: WorkloadName,
    path: String,
    id: u64,
    directory: OwnedFd,
    /// Names of exec cgroups that are to be removed when they are empty; `None` until those of earlier runs were looked for.
    /// Not looked for at each sweep: others may have made any number of cgroups beside them.
    commands: Option<BTreeSet<OsString>>,
}

impl Workload {
    /// Its number, from 1; never given twice by one supervisor.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &WorkloadName {
        &self.name
    }
    /// Its path below the mount, beginning with '/'.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }
    /// Its cgroup id.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }
}

impl AsFd for Workload {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// What became of a workload's directory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Released {
    /// It was empty and is removed.
    Removed,
    /// Processes still run in it; it stays.
    Busy,
}

/// All workloads of this host.
#[derive(Debug)]
pub struct Workloads {
    mount: Mount,
    parent: String,
    parent_directory: OwnedFd,
    markers: PathBuf,
    known: BTreeMap<WorkloadName, Workload>,
    next: u32,
}

impl Workloads {
    /// Makes the parent directory (`parent` is relative to the mount) and an empty set of workloads; markers
    /// go to `runtime_dir/armed`.
    ///
    /// # Errors
    /// If the parent's name is unusable, the agent is inside it, or the system refuses.
    pub fn open(mount: Mount, parent: &str, runtime_dir: &Path) -> Result<Self, Error> {
        let parent = normal_parent(parent)?;
        refuse_inside(mount::own_cgroup()?, &parent)?;
        let directory = mount.file(&parent);
        rights::as_root(|| make_directory(&directory)).map_err(io_error("make", &directory))?;
        let markers = runtime_dir.join("armed");
        make_directory(&markers).map_err(io_error("make", &markers))?;
        Ok(Self {
            parent_directory: open_directory(&directory)?,
            mount,
            parent,
            markers,
            known: BTreeMap::new(),
            next: 1,
        })
    }

    /// The cgroup v2 mount.
    #[must_use]
    pub fn mount(&self) -> &Mount {
        &self.mount
    }

    /// The path of the directory that all workloads lie in, below the mount, beginning with '/'.
    #[must_use]
    pub fn parent(&self) -> &str {
        &self.parent
    }

    /// That directory.
    #[must_use]
    pub fn parent_directory(&self) -> BorrowedFd<'_> {
        self.parent_directory.as_fd()
    }

    /// Makes a workload's cgroup, or takes the one that is there.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn add(&mut self, name: &WorkloadName) -> Result<&Workload, Error> {
        if !self.known.contains_key(name) {
            let workload = self.make(name)?;
            self.known.insert(name.clone(), workload);
        }
        self.get(name)
    }

    /// Name and cgroup id of each workload whose cgroup lies below the parent, added or not.
    ///
    /// # Errors
    /// If the parent can't be listed.
    pub fn present(&self) -> Result<Vec<(WorkloadName, u64)>, Error> {
        let parent = self.mount.file(&self.parent);
        let entries = fs::read_dir(&parent).map_err(io_error("list", &parent))?;
        let named = |entry: fs::DirEntry| {
            let name = WorkloadName::of_slice(entry.file_name().to_str()?)?;
            Some((name, entry.metadata().ok()?.ino()))
        };
        Ok(entries.flatten().filter_map(named).collect())
    }

    /// A workload that was added.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn get(&self, name: &WorkloadName) -> Result<&Workload, Error> {
        self.known
            .get(name)
            .ok_or_else(|| Error::Unknown { name: name.clone() })
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Workload> {
        self.known.values()
    }

    /// Says that the workload is captured: units of it may start (`AssertPathExists=`).
    ///
    /// # Errors
    /// If there is no such workload, or the marker can't be written.
    pub fn arm(&self, name: &WorkloadName) -> Result<(), Error> {
        self.get(name)?;
        let marker = self.markers.join(name.as_str());
        fs::write(&marker, b"")
            .and_then(|()| fs::set_permissions(&marker, Permissions::from_mode(0o644)))
            .map_err(io_error("write", &marker))
    }

    /// Says that it no longer is.
    ///
    /// # Errors
    /// If the marker can't be removed.
    pub fn disarm(&self, name: &WorkloadName) -> Result<(), Error> {
        let marker = self.markers.join(name.as_str());
        match fs::remove_file(&marker) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &marker)(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Forgets a workload and removes its cgroup, exec cgroups included, if no process is left in it.
    ///
    /// # Errors
    /// If there is no such workload, or the system refuses.
    pub fn release(&mut self, name: &WorkloadName) -> Result<Released, Error> {
        self.disarm(name)?;
        self.sweep(name)?;
        let directory = self.mount.file(self.get(name)?.path());
        let released = remove_if_empty(&directory)?;
        self.known.remove(name);
        Ok(released)
    }

    /// Whether processes run in a workload, those of cgroups below it included.
    ///
    /// # Errors
    /// If there is no such workload, or its cgroup can't be examined.
    pub fn is_occupied(&self, name: &WorkloadName) -> Result<bool, Error> {
        leave::is_occupied(&self.mount.file(self.get(name)?.path()))
    }

    /// Removes the parent too, if no workload is left in it. For a stop that shall leave nothing behind.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn remove_parent(&self) -> Result<Released, Error> {
        remove_if_empty(&self.mount.file(&self.parent))
    }

    fn make(&mut self, name: &WorkloadName) -> Result<Workload, Error> {
        let path = format!("{}/{}", self.parent, name.slice());
        let file = self.mount.file(&path);
        rights::as_root(|| make_directory(&file)).map_err(io_error("make", &file))?;
        let directory = open_directory(&file)?;
        let id = nix::sys::stat::fstat(&directory)
            .map_err(|errno| io_error("examine", &file)(errno.into()))?
            .st_ino;
        let number = self.next;
        self.next = number
            .checked_add(1)
            .ok_or_else(|| Error::Numbers { name: name.clone() })?;
        Ok(Workload {
            number,
            name: name.clone(),
            path,
            id,
            directory,
            commands: None,
        })
    }
}

/// "callgate.slice", "/a/b/" -> "/callgate.slice", "/a/b".
fn normal_parent(parent: &str) -> Result<String, Error> {
    let trimmed = parent.trim_matches('/');
    let plain =
        |level: &str| !level.is_empty() && level != "." && level != ".." && !level.contains(['\n', '\0']);
    if trimmed.split('/').all(plain) {
        Ok(format!("/{trimmed}"))
    } else {
        Err(Error::Parent {
            path: parent.to_owned(),
        })
    }
}

/// The parent itself counts too: connect hooks are attached there.
fn refuse_inside(own: String, parent: &str) -> Result<(), Error> {
    let inside = own
        .strip_prefix(parent)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if inside {
        return Err(Error::InsideWorkload {
            path: own,
            parent: parent.to_owned(),
        });
    }
    Ok(())
}

/// Makes a directory and those above it, for everybody to read; fine if it is there already.
fn make_directory(directory: &Path) -> io::Result<()> {
    if let Some(above) = directory.parent().filter(|above| !above.exists()) {
        make_directory(above)?;
    }
    match make_readable(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// Makes one directory that everybody may read, whatever the umask.
fn make_readable(directory: &Path) -> io::Result<()> {
    fs::create_dir(directory)?;
    fs::set_permissions(directory, Permissions::from_mode(0o755))
}

fn open_directory(directory: &Path) -> Result<OwnedFd, Error> {
    fs::File::open(directory)
        .map(OwnedFd::from)
        .map_err(io_error("open", directory))
}

/// rmdir on a cgroup refuses with EBUSY while a process or a child cgroup is in it.
fn remove_if_empty(directory: &Path) -> Result<Released, Error> {
    match fs::remove_dir(directory) {
        Ok(()) => Ok(Released::Removed),
        Err(error) => match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT) => Ok(Released::Removed),
            Some(Errno::EBUSY | Errno::ENOTEMPTY) => Ok(Released::Busy),
            _ => Err(io_error("remove", directory)(error)),
        },
    }
}

fn io_error(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Io { act, path, source }
}

#[cfg(test)]
mod tests;
