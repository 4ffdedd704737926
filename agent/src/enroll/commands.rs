//! The exec cgroups of workloads: one for each command, from its start until it has ended.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::{Error, Released, Workload, Workloads, io_error, make_readable, remove_if_empty};
use crate::identity::WorkloadName;
use crate::identity::process::HeldProcess;
use crate::identity::unit::EXEC_PREFIX;
use crate::rights;

/// Whether a process whose cgroup is shown like this is in the agent's room `id` of the workload with this slice, as
/// [`Workloads::room`] makes it: right below the slice. Further down the workload may make what it likes.
#[must_use]
pub fn is_in_room(cgroup: &str, slice: &OsStr, id: &str) -> bool {
    let mut below = Path::new(cgroup)
        .components()
        .skip_while(|part| part.as_os_str() != slice)
        .skip(1);
    let room = below.next().and_then(|part| part.as_os_str().to_str());
    room.and_then(|name| name.strip_prefix(EXEC_PREFIX)) == Some(id) && below.next().is_none()
}

impl Workloads {
    /// Moves a process, with all its threads, into a new cgroup `exec-ID` of the workload.
    ///
    /// The caller took hold of the process when it knew that it was the right one (its peer, waiting for the
    /// answer). A hold can't be written to cgroup.procs, only a number: so it is checked on both sides of
    /// the write that the number is the held process's, and that it arrived.
    ///
    /// # Errors
    /// If the process is gone, or the system refuses; the cgroup is removed again.
    pub fn place(&mut self, process: &HeldProcess, name: &WorkloadName, id: &str) -> Result<String, Error> {
        let plain = |id: &str| id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if id.is_empty() || id.len() > 64 || !plain(id) {
            return Err(Error::ExecId { id: id.to_owned() });
        }
        let path = format!("{}/{EXEC_PREFIX}{id}", self.get(name)?.path());
        let directory = self.mount.file(&path);
        rights::as_root(|| make_readable(&directory)).map_err(io_error("make", &directory))?;
        self.get_mut(name)?.note_command(&directory);
        match enter(process, &directory, &path) {
            Ok(()) => Ok(path),
            Err(error) => {
                // If it can't be removed now, the next sweep does it; the first error is the one to tell.
                remove_if_empty(&directory).ok();
                Err(error)
            }
        }
    }

    /// The file by which a process that holds it enters a cgroup of its own in the workload, for as long as the cgroup
    /// is not swept away.
    ///
    /// # Errors
    /// If the cgroup can't be made.
    pub fn room(&mut self, name: &WorkloadName, id: &str) -> Result<fs::File, Error> {
        let directory = self
            .mount
            .file(&format!("{}/{EXEC_PREFIX}{id}", self.get(name)?.path()));
        match rights::as_root(|| make_readable(&directory)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(io_error("make", &directory)(error));
            }
            _ => self.get_mut(name)?.note_command(&directory),
        }
        let procs = directory.join("cgroup.procs");
        fs::File::options()
            .write(true)
            .open(&procs)
            .map_err(io_error("open", &procs))
    }

    /// Removes the exec cgroups of a workload that no process is left in.
    ///
    /// # Errors
    /// If there is no such workload, or the system refuses.
    pub fn sweep(&mut self, name: &WorkloadName) -> Result<(), Error> {
        let directory = self.mount.file(self.get(name)?.path());
        let commands = &mut self.get_mut(name)?.commands;
        let commands = match commands {
            Some(commands) => commands,
            none => none.insert(commands_in(&directory)?),
        };
        let mut swept = Ok(());
        commands.retain(|command| match remove_if_empty(&directory.join(command)) {
            Ok(released) => released == Released::Busy,
            Err(error) => {
                swept = Err(error);
                true
            }
        });
        swept
    }

    fn get_mut(&mut self, name: &WorkloadName) -> Result<&mut Workload, Error> {
        self.known
            .get_mut(name)
            .ok_or_else(|| Error::Unknown { name: name.clone() })
    }
}

impl Workload {
    fn note_command(&mut self, directory: &Path) {
        if let (Some(commands), Some(name)) = (&mut self.commands, directory.file_name()) {
            commands.insert(name.to_owned());
        }
    }
}

fn enter(process: &HeldProcess, directory: &Path, path: &str) -> Result<(), Error> {
    let expected = fs::metadata(directory)
        .map_err(io_error("examine", directory))?
        .ino();
    process.start_ticks()?;
    let procs = directory.join("cgroup.procs");
    fs::write(&procs, process.pid().to_string()).map_err(io_error("write", &procs))?;
    // The directory is new and its name ours, so its last part is proof enough, whatever root of the
    // hierarchy /proc shows paths from.
    let arrived = process
        .cgroup()?
        .is_some_and(|shown| Path::new(&shown).file_name() == directory.file_name());
    let same = fs::metadata(directory).is_ok_and(|found| found.ino() == expected);
    if arrived && same {
        Ok(())
    } else {
        Err(Error::NotEntered {
            pid: process.pid(),
            path: path.to_owned(),
        })
    }
}

/// The names of the exec cgroups in a workload's directory.
fn commands_in(directory: &Path) -> Result<BTreeSet<OsString>, Error> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        entries => entries.map_err(io_error("list", directory))?,
    };
    let is_command = |entry: &fs::DirEntry| {
        let ours = entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(EXEC_PREFIX.as_bytes());
        ours && entry.file_type().is_ok_and(|kind| kind.is_dir())
    };
    Ok(entries
        .flatten()
        .filter(is_command)
        .map(|entry| entry.file_name())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_right_below_the_slice_is_a_room_the_agents() {
        let slice = OsStr::new("callgate-billing.slice");
        let is = |cgroup: &str| is_in_room(cgroup, slice, "canary");
        assert!(is("/callgate.slice/callgate-billing.slice/exec-canary"));
        for other in [
            "/callgate.slice/callgate-billing.slice/exec-canary/own",
            "/callgate.slice/callgate-billing.slice/own.service/exec-canary",
            "/callgate.slice/callgate-billing.slice/own.service/callgate-billing.slice/exec-canary",
            "/callgate.slice/callgate-billing.slice/exec-7",
            "/callgate.slice/callgate-billing.slice",
            "/callgate.slice/callgate-other.slice/exec-canary",
            "/exec-canary",
        ] {
            assert!(!is(other), "{other}");
        }
    }
}
