//! Pins whose file system the host has no more: told by what process 1 sees, kept by one descriptor of their directory, and
//! moved to where `bpffs_dir` leads now.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::bpffs::prepare;
use super::pins::{LINKS, MAPS_DIR, Pins, children, make_dir, pin, remove_dir};
use super::{Error, Programs, sys};

/// What became of the pins of the last run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Moved {
    /// They are where they belong, or there are none.
    Nothing,
    /// The host still sees the place where they were: `bpffs_dir` is another one.
    BySetting,
    /// Nobody but who keeps them saw them.
    Unmounted,
}

/// Moves what is pinned below `left`, the directory that the last run pinned in, to `dir`, whichever version made it. What was
/// attached stays so.
///
/// # Errors
/// If a pin can't be read or made. Nothing is detached by that.
pub fn move_pins(left: BorrowedFd<'_>, dir: &Path) -> Result<Moved, Error> {
    prepare(dir)?;
    let old = PathBuf::from(format!("/proc/self/fd/{}", left.as_raw_fd()));
    let (Some(was), Some(is)) = (identity(&old)?, identity(dir)?) else {
        return Ok(Moved::Nothing);
    };
    if was == is || !transfer(&old, dir)? {
        return Ok(Moved::Nothing);
    }
    let by_setting = is_mounted(was.0).map_err(|source| Error::file("read", MOUNTS, source))?;
    Ok(if by_setting {
        Moved::BySetting
    } else {
        Moved::Unmounted
    })
}

/// As process 1 has them.
const MOUNTS: &str = "/proc/1/mountinfo";

/// Whether the host has a file system of this device number mounted, wherever (proc_pid_mountinfo(5)).
fn is_mounted(device: u64) -> io::Result<bool> {
    let number = format!("{}:{}", libc::major(device), libc::minor(device));
    let mounts = fs::read_to_string(MOUNTS)?;
    Ok(mounts
        .lines()
        .any(|line| line.split(' ').nth(2) == Some(number.as_str())))
}

/// What tells a directory from others; `None` if it is not there.
fn identity(dir: &Path) -> Result<Option<(u64, u64)>, Error> {
    match fs::metadata(dir) {
        Ok(found) => Ok(Some((found.dev(), found.ino()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::file("inspect", dir, source)),
    }
}

/// Pins below `new` what is pinned below `old`, and only then removes it there: other mount namespaces may keep that file
/// system longer than anything shall be held. Says whether there was anything.
fn transfer(old: &Path, new: &Path) -> Result<bool, Error> {
    let mut parts = vec![PathBuf::from(MAPS_DIR)];
    for cgroup in children(&old.join(LINKS))? {
        parts.extend(cgroup.file_name().map(|name| Path::new(LINKS).join(name)));
    }
    let mut any = false;
    for part in &parts {
        make_dir(&new.join(part))?;
        for pinned in children(&old.join(part))? {
            let Some(name) = pinned.file_name() else { continue };
            let place = new.join(part).join(name);
            let object =
                sys::obj_get(&pinned).map_err(|source| Error::file("open the pin", &pinned, source))?;
            pin(&object, &place).map_err(|source| Error::file("pin again at", &place, source))?;
            any = true;
        }
    }
    for part in parts.iter().map(PathBuf::as_path).chain([Path::new(LINKS)]) {
        remove_dir(&old.join(part))?;
    }
    Ok(any)
}

impl Pins {
    /// Whether others find something else there: in a mount namespace of its own an unmounted file system stays, and goes
    /// with the last process in it, and with it all pins that nobody keeps. Not asked where the host's mounts can't be seen.
    pub(super) fn are_hidden(&self) -> bool {
        let Some(as_host) = &self.as_host else {
            return false;
        };
        match (identity(as_host), identity(&self.dir)) {
            (Ok(Some(hosts)), own) => !own.is_ok_and(|own| own == Some(hosts)),
            (Ok(None), _) => true,
            (Err(_), _) => false,
        }
    }

    /// Goes on where the host has a BPF file system again, if it does.
    pub(super) fn follow_host(&mut self) -> Result<(), Error> {
        let unmounted = || Error::Unmounted {
            path: self.dir.clone(),
        };
        let as_host = self.as_host.clone().ok_or_else(unmounted)?;
        if !statfs(&as_host).is_ok_and(|system| system.filesystem_type() == BPF_FS_MAGIC) {
            return Err(unmounted());
        }
        transfer(&self.dir, &as_host)?;
        self.dir = as_host;
        Ok(())
    }
}

impl Programs {
    /// The pin directory: all that is pinned below it stays for as long as somebody has this, mounted or not.
    ///
    /// # Errors
    /// If it can't be opened.
    pub fn pin_directory(&self) -> Result<OwnedFd, Error> {
        let dir = self.pins.dir();
        let opened = File::open(dir).map_err(|source| Error::file("open", dir, source))?;
        Ok(opened.into())
    }
}
