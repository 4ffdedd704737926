//! Pins whose file system the host has no more: told by what process 1 sees where they were, kept by one descriptor of their directory, and
//! moved to where `bpffs_dir` leads now.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::bpffs::prepare;
use super::pins::{LINKS, MAPS_DIR, Pins, as_host, children, make_dir, pin, remove_dir};
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
    // Versions that said nothing of it are taken to have had the same setting.
    let place = place_of(&old)?.unwrap_or_else(|| dir.to_owned());
    if was == is || !transfer(&old, dir)? {
        return Ok(Moved::Nothing);
    }
    // That the file system is mounted somewhere says nothing: others may have bound it to places of theirs.
    let seen = identity(&as_host(&place).unwrap_or(place));
    Ok(if seen.is_ok_and(|seen| seen == Some(was)) {
        Moved::BySetting
    } else {
        Moved::Unmounted
    })
}

/// The link in a directory of pins that says where it was to be found: a descriptor of it does not, once it is mounted nowhere.
const PLACE: &str = "place";

fn place_of(pins: &Path) -> Result<Option<PathBuf>, Error> {
    let link = pins.join(PLACE);
    match fs::read_link(&link) {
        Ok(place) => Ok(Some(place)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::file("read the link", link, source)),
    }
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
    remove_place(old)?;
    Ok(any)
}

pub(super) fn remove_place(pins: &Path) -> Result<(), Error> {
    let link = pins.join(PLACE);
    match fs::remove_file(&link) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", link, source)),
        _ => Ok(()),
    }
}

impl Pins {
    /// Writes down where the directory is, for [`move_pins`].
    pub(super) fn note_place(&self) -> Result<(), Error> {
        if place_of(&self.dir)?.as_deref() == Some(&self.place) {
            return Ok(());
        }
        remove_place(&self.dir)?;
        let link = self.dir.join(PLACE);
        symlink(&self.place, &link).map_err(|source| Error::file("make the link", link, source))
    }

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
    /// The pin directory: all that is pinned below it stays for as long as somebody has this, mounted or not. With the
    /// numbers of its device and inode, which tell it from others.
    ///
    /// # Errors
    /// If it can't be opened.
    pub fn pin_directory(&self) -> Result<(OwnedFd, (u64, u64)), Error> {
        let dir = self.pins.dir();
        let opened = File::open(dir).map_err(|source| Error::file("open", dir, source))?;
        let found = opened
            .metadata()
            .map_err(|source| Error::file("inspect", dir, source))?;
        Ok((opened.into(), (found.dev(), found.ino())))
    }
}
