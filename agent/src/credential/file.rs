//! Source: a file, owner and mode checked.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::secret::{MAX_LEN, Secret, SecretError};

/// Why a file gives no secret. Each text says what to do; none holds anything of the file's content.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The agent has no current directory that an operator could mean.
    #[error("{}: the path of a secret file must be absolute", path.display())]
    Relative {
        /// The path.
        path: PathBuf,
    },
    /// It isn't there, or can't be read.
    #[error("{}: can't read the secret file: {source}{}", path.display(), unseen(path))]
    Io {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A symbolic link: what it points to can change without a trace here.
    #[error("{}: a secret file can't be a symbolic link; name the file that it points to", path.display())]
    Link {
        /// The path.
        path: PathBuf,
    },
    /// A directory, pipe, device or socket.
    #[error("{}: a secret file must be a regular file", path.display())]
    NotRegular {
        /// The path.
        path: PathBuf,
    },
    /// Somebody else's file.
    #[error("{}: belongs to uid {uid}; a secret file must belong to root or the agent (chown root)", path.display())]
    Owner {
        /// The path.
        path: PathBuf,
        /// Whose it is.
        uid: u32,
    },
    /// Others may read or write it.
    #[error("{}: has mode {mode:04o}; a secret file must be closed to group and others (chmod 0600)", path.display())]
    Mode {
        /// The path.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Somebody could put another file in its place.
    #[error("{}: others can replace what lies in this directory (uid {uid}, mode {mode:04o}); it must belong to root or the agent and be writable by nobody else", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        uid: u32,
        /// Its permission bits.
        mode: u32,
    },
    /// The content.
    #[error("{}: {source}", path.display())]
    Content {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        source: SecretError,
    },
}

/// What is to be said of a path that the installed agent can't see; nothing of others.
#[must_use]
pub fn unseen(path: &Path) -> &'static str {
    if ["/home", "/root", "/run/user"]
        .iter()
        .any(|home| path.starts_with(home))
    {
        " (callgate.service sees no home directories: move it, for example below /etc/callgate)"
    } else {
        ""
    }
}

/// What tells that a file has changed or been replaced.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    size: u64,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            // Owner and mode show here: a file that was opened to others is read, and refused, again.
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            size: metadata.size(),
        }
    }
}

/// Looks at the file without reading it.
///
/// # Errors
/// If it isn't there.
pub fn stamp(path: &Path) -> Result<Stamp, FileError> {
    let metadata = fs::symlink_metadata(path).map_err(|source| FileError::Io {
        path: path.to_owned(),
        source,
    })?;
    Ok(Stamp::of(&metadata))
}

/// Reads a secret: a regular file of root's or the agent's own user that nobody else can read, write or replace.
///
/// # Errors
/// Names the first of these that doesn't hold.
pub fn read(path: &Path) -> Result<(Secret, Stamp), FileError> {
    if !path.is_absolute() {
        return Err(FileError::Relative {
            path: path.to_owned(),
        });
    }
    let agent = nix::unistd::geteuid().as_raw();
    check_directories(path, agent)?;
    let file = open(path)?;
    let io = |source| FileError::Io {
        path: path.to_owned(),
        source,
    };
    let metadata = file.metadata().map_err(io)?;
    check_file(path, &metadata, agent)?;
    // Room for one newline, and one byte more to tell that it is too long. Reserved at once: growing would leave
    // copies behind.
    let mut bytes = Vec::with_capacity(MAX_LEN + 4);
    let read = file.take(MAX_LEN as u64 + 3).read_to_end(&mut bytes);
    let secret = Secret::from_line(bytes);
    read.map_err(io)?;
    match secret {
        Ok(secret) => Ok((secret, Stamp::of(&metadata))),
        Err(source) => Err(FileError::Content {
            path: path.to_owned(),
            source,
        }),
    }
}

fn open(path: &Path) -> Result<File, FileError> {
    OpenOptions::new()
        .read(true)
        // Without O_NONBLOCK a pipe in the file's place would hang the supervisor.
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY)
        .open(path)
        .map_err(|source| {
            let path = path.to_owned();
            match source.raw_os_error() {
                Some(libc::ELOOP) => FileError::Link { path },
                Some(libc::ENXIO) => FileError::NotRegular { path },
                _ => FileError::Io { path, source },
            }
        })
}

fn check_file(path: &Path, metadata: &Metadata, agent: u32) -> Result<(), FileError> {
    let path = path.to_owned();
    if !metadata.is_file() {
        return Err(FileError::NotRegular { path });
    }
    let (uid, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    if uid != 0 && uid != agent {
        return Err(FileError::Owner { path, uid });
    }
    if mode & 0o077 != 0 {
        return Err(FileError::Mode { path, mode });
    }
    Ok(())
}

/// Every directory above the file, as written and as resolved. One that others may write is good enough if it is
/// sticky (like /tmp): there nobody can replace what belongs to root or the agent.
fn check_directories(path: &Path, agent: u32) -> Result<(), FileError> {
    let Some(parent) = path.parent() else {
        return Err(FileError::NotRegular {
            path: path.to_owned(),
        });
    };
    let io = |path: &Path, source| FileError::Io {
        path: path.to_owned(),
        source,
    };
    let resolved = fs::canonicalize(parent).map_err(|source| io(path, source))?;
    for directory in resolved.ancestors().chain(parent.ancestors()) {
        let metadata = fs::metadata(directory).map_err(|source| io(directory, source))?;
        let (uid, mode) = (metadata.uid(), metadata.mode() & 0o7777);
        let foreign = uid != 0 && uid != agent;
        let open = mode & 0o022 != 0 && mode & 0o1000 == 0;
        if foreign || open {
            return Err(FileError::Directory {
                path: directory.to_owned(),
                uid,
                mode,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
