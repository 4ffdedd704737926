//! The host's directories of roots, shown to managed units with the agent's root added: a copy of each, kept up with the
//! host's, to be mounted over it.
//!
//! Directories, since what is mounted is an inode: a file that is replaced by a rename would stay the old one there.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, DirEntry, FileType};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::enroll::make_directory;

use super::{HOST_BUNDLES, MAX_BUNDLE_BYTES, TrustError, io_error, replace};

/// Where distributions keep their roots: Debian, Alpine, Arch; Fedora, with links from the second; SUSE.
const PLACES: &[&str] = &[
    "/etc/ssl/certs",
    "/etc/pki/ca-trust/extracted",
    "/etc/pki/tls/certs",
    "/var/lib/ca-certificates",
];
/// Levels below a place that are copied.
const DEEPEST: usize = 4;
/// Entries of one directory that are copied; a host has a few hundred.
const MOST: usize = 10_000;

/// Files that get other contents than the host's.
pub(super) type Merged<'a> = &'a [(&'a str, &'a [u8])];

/// The places that this host has. A link to another place is none: what it leads to is.
pub(super) fn present() -> Vec<PathBuf> {
    let places = PLACES.iter().map(PathBuf::from);
    places
        .filter(|place| fs::symlink_metadata(place).is_ok_and(|found| found.is_dir()))
        .collect()
}

/// Where the copy of a place is.
pub(super) fn copy_of(place: &Path, directory: &Path) -> PathBuf {
    let below = place.strip_prefix("/").unwrap_or(place);
    directory.join("places").join(below)
}

/// What tells that the host's roots may have changed.
pub(super) fn stamp() -> Vec<Option<[i64; 4]>> {
    let paths = HOST_BUNDLES.iter().chain(PLACES);
    let looked = paths.map(|path| {
        let found = fs::metadata(path).ok()?;
        // As numbers to compare; none is calculated with.
        Some([
            found.ino().cast_signed(),
            found.mtime(),
            found.mtime_nsec(),
            found.size().cast_signed(),
        ])
    });
    looked.collect()
}

/// Makes `own` a copy of `host`, but for what is merged. The directory itself stays the same one.
pub(super) fn copy(host: &Path, own: &Path, merged: Merged<'_>) -> Result<(), TrustError> {
    copy_level(host, own, merged, DEEPEST)
}

fn copy_level(host: &Path, own: &Path, merged: Merged<'_>, levels: usize) -> Result<(), TrustError> {
    make_directory(own).map_err(io_error("make", own))?;
    // Whatever became of an earlier start.
    fs::set_permissions(own, PermissionsExt::from_mode(0o755)).map_err(io_error("open up", own))?;
    let mut kept = BTreeSet::new();
    for entry in entries(host)? {
        let (from, to) = (entry.path(), own.join(entry.file_name()));
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        let content = merged.iter().find(|(path, _)| from == Path::new(path));
        let copied = match content {
            Some((_, bytes)) if kind.is_file() => same(&to, bytes).and_then(|same| match same {
                true => Ok(true),
                false => clear(&to, kind).and_then(|()| replace(&to, bytes).map(|()| true)),
            }),
            _ if kind.is_dir() && levels > 0 => {
                clear(&to, kind)?;
                copy_level(&from, &to, merged, levels - 1).map(|()| true)
            }
            _ if kind.is_symlink() => copy_link(&from, &to, kind),
            _ if kind.is_file() => copy_file(&from, &to, kind),
            _ => Ok(false),
        }?;
        if copied {
            kept.insert(entry.file_name());
        }
    }
    remove_others(own, &kept)
}

fn copy_link(from: &Path, to: &Path, kind: FileType) -> Result<bool, TrustError> {
    // One that is gone by now comes with the next look.
    let Ok(target) = fs::read_link(from) else {
        return Ok(false);
    };
    if fs::read_link(to).is_ok_and(|present| present == target) {
        return Ok(true);
    }
    clear(to, kind)?;
    match fs::remove_file(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error("replace", to)(error)),
        Ok(()) | Err(_) => {}
    }
    symlink(&target, to).map_err(io_error("make", to))?;
    Ok(true)
}

/// What not everybody may read there is not for everybody here.
fn copy_file(from: &Path, to: &Path, kind: FileType) -> Result<bool, TrustError> {
    let readable =
        fs::metadata(from).is_ok_and(|found| found.mode() & 0o004 != 0 && found.len() <= MAX_BUNDLE_BYTES);
    let Some(bytes) = readable.then(|| fs::read(from).ok()).flatten() else {
        return Ok(false);
    };
    if !same(to, &bytes)? {
        clear(to, kind)?;
        replace(to, &bytes)?;
    }
    Ok(true)
}

fn same(path: &Path, bytes: &[u8]) -> Result<bool, TrustError> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_file() && found.len() == bytes.len() as u64 => {
            Ok(fs::read(path).map_err(io_error("read", path))? == bytes)
        }
        Ok(_) | Err(_) => Ok(false),
    }
}

/// Takes away what is of another kind than what comes.
fn clear(path: &Path, kind: FileType) -> Result<(), TrustError> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() && !kind.is_dir() => fs::remove_dir_all(path),
        Ok(found) if !found.is_dir() && kind.is_dir() => fs::remove_file(path),
        Ok(_) | Err(_) => Ok(()),
    }
    .map_err(io_error("remove", path))
}

fn remove_others(own: &Path, kept: &BTreeSet<OsString>) -> Result<(), TrustError> {
    for entry in entries(own)? {
        if kept.contains(&entry.file_name()) {
            continue;
        }
        let path = entry.path();
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let removed = if is_dir {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.map_err(io_error("remove", &path))?;
    }
    Ok(())
}

fn entries(directory: &Path) -> Result<Vec<DirEntry>, TrustError> {
    let entries = fs::read_dir(directory).map_err(io_error("list", directory))?;
    Ok(entries.flatten().take(MOST).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_follows_the_hosts_directory_in_all_that_changes() {
        let place = tempfile::tempdir().unwrap();
        let (host, own) = (place.path().join("host"), place.path().join("own"));
        fs::create_dir_all(host.join("java")).unwrap();
        fs::write(host.join("bundle"), "host").unwrap();
        fs::write(host.join("java/cacerts"), "store").unwrap();
        fs::write(host.join("private"), "key").unwrap();
        fs::set_permissions(host.join("private"), PermissionsExt::from_mode(0o640)).unwrap();
        symlink("/usr/share/a.crt", host.join("a.pem")).unwrap();
        let bundle = host.join("bundle").to_string_lossy().into_owned();
        let merged: Merged<'_> = &[(bundle.as_str(), b"host and ours")];
        copy(&host, &own, merged).unwrap();
        let inode = fs::metadata(&own).unwrap().ino();
        assert_eq!(fs::read(own.join("bundle")).unwrap(), b"host and ours");
        assert_eq!(fs::read(own.join("java/cacerts")).unwrap(), b"store");
        assert_eq!(
            fs::read_link(own.join("a.pem")).unwrap(),
            Path::new("/usr/share/a.crt")
        );
        assert!(!own.join("private").exists());

        fs::remove_file(host.join("a.pem")).unwrap();
        fs::write(host.join("a.pem"), "now a file").unwrap();
        fs::remove_dir_all(host.join("java")).unwrap();
        symlink("elsewhere", host.join("java")).unwrap();
        symlink("/usr/share/b.crt", host.join("b.pem")).unwrap();
        copy(&host, &own, merged).unwrap();
        assert_eq!(fs::read(own.join("a.pem")).unwrap(), b"now a file");
        assert_eq!(fs::read_link(own.join("java")).unwrap(), Path::new("elsewhere"));
        assert!(fs::symlink_metadata(own.join("b.pem")).is_ok());

        fs::remove_file(host.join("b.pem")).unwrap();
        fs::remove_file(host.join("java")).unwrap();
        fs::create_dir(host.join("java")).unwrap();
        copy(&host, &own, merged).unwrap();
        assert!(fs::symlink_metadata(own.join("b.pem")).is_err());
        assert!(own.join("java").is_dir());
        assert_eq!(fs::metadata(&own).unwrap().ino(), inode, "a mount would lose it");
    }
}
