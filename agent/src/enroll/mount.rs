//! Where cgroup v2 is mounted: alone, beside v1 (hybrid), or somewhere else.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::{Error, io_error};
use crate::identity::process::HeldProcess;

/// How the host uses cgroups.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Layout {
    /// Only v2.
    Unified,
    /// v2 beside v1 controllers.
    Hybrid,
}

/// The cgroup v2 mount.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mount {
    path: PathBuf,
    layout: Layout,
}

impl Mount {
    /// Finds it in `/proc/self/mountinfo`.
    ///
    /// # Errors
    /// If there is none, or it can't be read.
    pub fn find() -> Result<Self, Error> {
        let file = Path::new("/proc/self/mountinfo");
        let text = std::fs::read(file).map_err(io_error("read", file))?;
        Self::candidates(&text)
            .into_iter()
            .find(Self::is_visible)
            .ok_or(Error::NoMount)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What stands beside it.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The file of a cgroup path that begins with '/'.
    #[must_use]
    pub fn file(&self, cgroup: &str) -> PathBuf {
        self.path.join(cgroup.trim_start_matches('/'))
    }

    /// A mount of something else above it, or over it, hides one that is still listed.
    fn is_visible(&self) -> bool {
        statfs(&self.path).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC)
    }

    /// Mounts of the whole hierarchy, those that can be written first, later ones first: a later mount on the same
    /// place hides an earlier one, and a bind mount of a part of it shows other paths than `/proc` does.
    fn candidates(mountinfo: &[u8]) -> Vec<Self> {
        let entries: Vec<Entry<'_>> = mountinfo
            .split(|b| *b == b'\n')
            .filter_map(Entry::parse)
            .collect();
        let layout = if entries.iter().any(|entry| entry.kind == b"cgroup") {
            Layout::Hybrid
        } else {
            Layout::Unified
        };
        let mut whole: Vec<&Entry<'_>> = entries
            .iter()
            .rev()
            .filter(|entry| entry.kind == b"cgroup2" && entry.root == b"/")
            .collect();
        whole.sort_by_key(|entry| !entry.writable);
        whole
            .into_iter()
            .map(|entry| Self {
                path: unescape(entry.place),
                layout,
            })
            .collect()
    }
}

/// The agent's own cgroup, as `/proc/self/cgroup` shows it.
pub(super) fn own_cgroup() -> Result<String, Error> {
    Ok(HeldProcess::open(std::process::id())?
        .cgroup()?
        .unwrap_or_else(|| "/".to_owned()))
}

/// One line of proc_pid_mountinfo(5).
struct Entry<'a> {
    root: &'a [u8],
    place: &'a [u8],
    kind: &'a [u8],
    writable: bool,
}

impl<'a> Entry<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.split(|b| *b == b' ').skip(3);
        let (root, place, options) = (fields.next()?, fields.next()?, fields.next()?);
        let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
        Some(Self {
            root,
            place,
            kind,
            writable: options.split(|b| *b == b',').any(|option| option == b"rw"),
        })
    }
}

/// Blanks, tabs, newlines and backslashes stand as three octal digits after a backslash.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        match rest {
            [
                b'\\',
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                after @ ..,
            ] => {
                bytes.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(mountinfo: &str, expected: Option<(&str, Layout)>) {
        let found = Mount::candidates(mountinfo.as_bytes()).into_iter().next();
        let expected = expected.map(|(path, layout)| Mount {
            path: path.into(),
            layout,
        });
        assert_eq!(found, expected);
    }

    #[test]
    fn every_layout_is_found() {
        check(
            "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
            Some(("/sys/fs/cgroup", Layout::Unified)),
        );
        check(
            "39 31 0:36 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n",
            Some(("/sys/fs/cgroup/unified", Layout::Hybrid)),
        );
        check(
            "41 31 0:38 / /mnt/my\\040groups rw - cgroup2 none rw\n",
            Some(("/mnt/my groups", Layout::Unified)),
        );
    }

    #[test]
    fn a_part_of_the_hierarchy_and_a_host_without_it_are_not_taken() {
        check(
            "41 31 0:38 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
            None,
        );
        check(
            "39 31 0:36 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n",
            None,
        );
        check("garbage\n\n", None);
    }

    #[test]
    fn a_mount_that_another_hides_is_passed_over() {
        let hidden = Mount {
            path: "/proc".into(),
            layout: Layout::Unified,
        };
        assert!(!hidden.is_visible());
        assert!(Mount::find().unwrap().is_visible());
    }

    #[test]
    fn a_mount_that_can_be_written_is_preferred() {
        check(
            "41 31 0:38 / /a rw - cgroup2 none rw\n42 31 0:38 / /b ro - cgroup2 none rw\n",
            Some(("/a", Layout::Unified)),
        );
    }
}
