//! The guest's first file system: a cpio archive in the form that the kernel unpacks (newc; see
//! Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
/// Entries and archives begin at multiples of this.
const ALIGN: usize = 4;

/// An archive in the making. Each path is taken once: the first entry counts.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    paths: BTreeSet<PathBuf>,
}

impl Archive {
    /// A directory, with those above it.
    pub(crate) fn directory(&mut self, path: &Path, mode: u32) {
        if !self.is_new(path) {
            return;
        }
        self.parents(path);
        self.entry(path, DIRECTORY | mode, (0, 0), &[]);
    }

    /// A file.
    pub(crate) fn file(&mut self, path: &Path, mode: u32, content: &[u8]) {
        if self.is_new(path) {
            self.parents(path);
            self.entry(path, FILE | mode, (0, 0), content);
        }
    }

    /// A symbolic link.
    pub(crate) fn link(&mut self, path: &Path, target: &Path) {
        if self.is_new(path) {
            self.parents(path);
            self.entry(path, LINK | 0o777, (0, 0), target.as_os_str().as_encoded_bytes());
        }
    }

    /// A character device.
    pub(crate) fn device(&mut self, path: &Path, mode: u32, numbers: (u32, u32)) {
        if self.is_new(path) {
            self.parents(path);
            self.entry(path, CHARACTER_DEVICE | mode, numbers, &[]);
        }
    }

    /// A file of this machine, at another place, with its mode.
    pub(crate) fn copy(&mut self, from: &Path, to: &Path) -> Result<()> {
        let meta = fs::metadata(from).with_context(|| format!("can't look at {}", from.display()))?;
        let content = fs::read(from).with_context(|| format!("can't read {}", from.display()))?;
        self.file(to, meta.permissions().mode() & 0o7777, &content);
        Ok(())
    }

    /// A directory of this machine with all in it, at another place; sockets and the like are left out.
    pub(crate) fn tree(&mut self, from: &Path, to: &Path) -> Result<()> {
        self.directory(to, 0o755);
        let entries = fs::read_dir(from).with_context(|| format!("can't list {}", from.display()))?;
        let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
        names.sort();
        for name in names {
            let (from, to) = (from.join(&name), to.join(&name));
            let kind = fs::symlink_metadata(&from)?.file_type();
            if kind.is_symlink() {
                self.link(&to, &fs::read_link(&from)?);
            } else if kind.is_dir() {
                self.tree(&from, &to)?;
            } else if kind.is_file() {
                self.copy(&from, &to)?;
            }
        }
        Ok(())
    }

    /// Ends the archive and writes it; several such files after one another are one file system.
    pub(crate) fn write(mut self, file: &Path) -> Result<()> {
        self.entry(Path::new("TRAILER!!!"), 0, (0, 0), &[]);
        fs::write(file, &self.bytes).with_context(|| format!("can't write {}", file.display()))
    }

    fn is_new(&mut self, path: &Path) -> bool {
        let path = strip(path);
        !path.as_os_str().is_empty() && self.paths.insert(path.to_owned())
    }

    fn parents(&mut self, path: &Path) {
        if let Some(parent) = strip(path).parent() {
            let parent = parent.to_owned();
            self.directory(&parent, 0o755);
        }
    }

    fn entry(&mut self, path: &Path, mode: u32, device: (u32, u32), content: &[u8]) {
        let name = strip(path).as_os_str().as_encoded_bytes();
        let number = self.paths.len();
        let (size, name_size) = (content.len(), name.len() + 1);
        let links = 1 + u32::from(mode & DIRECTORY != 0);
        let header = format!(
            "070701{number:08X}{mode:08X}{:08X}{:08X}{links:08X}{:08X}{size:08X}{:08X}{:08X}{:08X}{:08X}{name_size:08X}{:08X}",
            0, 0, 0, 0, 0, device.0, device.1, 0
        );
        self.bytes.extend(header.as_bytes());
        self.bytes.extend(name);
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
    }
}

fn strip(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_brings_its_directories_and_is_taken_once() {
        let mut archive = Archive::default();
        archive.file(Path::new("/a/b"), 0o644, b"xyz");
        let first = archive.bytes.len();
        archive.file(Path::new("a/b"), 0o644, b"other");
        assert_eq!(archive.bytes.len(), first);
        assert!(archive.paths.contains(Path::new("a")) && archive.paths.contains(Path::new("a/b")));
        // Header, name and content of the directory, then of the file, each aligned.
        assert_eq!(first, (110 + 2) + (110 + 4 + 2) + (3 + 1));
        assert!(archive.bytes.starts_with(b"070701"));
    }
}
