//! From a cgroup's id to its path, and what the directory says.
//!
//! A cgroup's id is its directory's inode number (64-bit kernels), never used twice while the host runs. So a
//! path is proven by one stat, and a cache of paths needs no clock: a wrong entry shows itself.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// A search gives up after this many directories: a workload with a delegated subtree could otherwise make
/// each look-up as slow as it likes. Its path is then absent.
const MAX_VISITS: usize = 4096;
const MAX_DEPTH: usize = 16;
/// More paths than this and the cache starts anew.
const MAX_PATHS: usize = 4096;
/// Set by PID 1 on the directory of each unit that it starts (systemd's src/core/cgroup.c).
const INVOCATION_ATTRIBUTE: &str = "trusted.invocation_id";

/// The cgroups of one mount.
#[derive(Debug)]
pub struct Cgroups {
    mount: PathBuf,
    paths: Mutex<HashMap<u64, Arc<str>>>,
}

impl Cgroups {
    /// The cgroups below a cgroup v2 mount.
    #[must_use]
    pub fn new(mount: &Path) -> Self {
        Self {
            mount: mount.to_owned(),
            paths: Mutex::default(),
        }
    }

    /// Whether `path` (below the mount, beginning with '/') is the cgroup with this id now.
    #[must_use]
    pub fn is(&self, path: &str, id: u64) -> bool {
        std::fs::symlink_metadata(self.file(path)).is_ok_and(|found| found.is_dir() && found.ino() == id)
    }

    /// The path of a cgroup at or below `slice`; `hint` is tried first. `None` once the cgroup is gone.
    #[must_use]
    pub fn path(&self, slice: &str, id: u64, hint: Option<&str>) -> Option<Arc<str>> {
        let below = |path: &str| {
            path.strip_prefix(slice)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if let Some(hint) = hint
            && below(hint)
            && self.is(hint, id)
        {
            return Some(self.remember(id, hint));
        }
        let known = self.lock().get(&id).cloned();
        if let Some(path) = known {
            if below(&path) && self.is(&path, id) {
                return Some(path);
            }
            self.lock().remove(&id);
        }
        let found = self.search(slice, id)?;
        Some(self.remember(id, &found))
    }

    /// systemd's InvocationID of the unit that owns the directory: 32 hex digits.
    #[must_use]
    pub fn invocation(&self, path: &str) -> Option<Arc<str>> {
        let value = xattr::get(self.file(path), INVOCATION_ATTRIBUTE).ok()??;
        let text = String::from_utf8(value).ok()?;
        (text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit())).then(|| text.into())
    }

    /// Whether only root makes names in this directory, so that they mean what they say.
    #[must_use]
    pub fn root_owned(&self, path: &str) -> bool {
        std::fs::symlink_metadata(self.file(path))
            .is_ok_and(|found| found.uid() == 0 && found.mode() & 0o022 == 0)
    }

    fn file(&self, path: &str) -> PathBuf {
        self.mount.join(path.trim_start_matches('/'))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<str>>> {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, id: u64, path: &str) -> Arc<str> {
        let path: Arc<str> = path.into();
        let mut paths = self.lock();
        if paths.len() >= MAX_PATHS {
            paths.clear();
        }
        paths.insert(id, Arc::clone(&path));
        path
    }

    /// Breadth first, so that the levels that PID 1 owns come before what a workload made below them.
    fn search(&self, slice: &str, id: u64) -> Option<String> {
        if self.is(slice, id) {
            return Some(slice.to_owned());
        }
        let mut level = vec![slice.to_owned()];
        let mut visits = 0;
        for _ in 0..MAX_DEPTH {
            let mut next = Vec::new();
            for parent in level {
                for (name, inode) in self.children(&parent) {
                    visits += 1;
                    let path = format!("{parent}/{name}");
                    if inode == id {
                        return self.is(&path, id).then_some(path);
                    }
                    if visits >= MAX_VISITS {
                        return None;
                    }
                    next.push(path);
                }
            }
            level = next;
        }
        None
    }

    /// The child cgroups of one, with their ids; lazily, so that the search's bound holds here too.
    fn children(&self, path: &str) -> impl Iterator<Item = (String, u64)> + use<> {
        std::fs::read_dir(self.file(path))
            .into_iter()
            .flatten()
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let directory = entry.file_type().ok()?.is_dir();
                let inode = std::os::unix::fs::DirEntryExt::ino(&entry);
                directory.then_some((entry.file_name().into_string().ok()?, inode))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(path: &Path) -> u64 {
        std::fs::metadata(path).unwrap().ino()
    }

    /// Ids and paths work alike on any file system, so no cgroup is needed here.
    #[test]
    fn a_path_is_found_by_id_and_forgotten_when_it_is_gone() {
        let mount = tempfile::tempdir().unwrap();
        let unit = mount.path().join("p.slice/w.slice/a.service");
        std::fs::create_dir_all(unit.join("inner")).unwrap();
        let cgroups = Cgroups::new(mount.path());
        let slice = "/p.slice/w.slice";
        let inner = id(&unit.join("inner"));
        let expected = "/p.slice/w.slice/a.service/inner";
        assert_eq!(cgroups.path(slice, inner, None).as_deref(), Some(expected));
        assert_eq!(
            cgroups.path(slice, inner, Some("/elsewhere")).as_deref(),
            Some(expected)
        );
        assert_eq!(
            cgroups
                .path(slice, id(&mount.path().join("p.slice/w.slice")), None)
                .as_deref(),
            Some(slice)
        );
        std::fs::rename(unit.join("inner"), unit.join("other")).unwrap();
        assert_eq!(
            cgroups.path(slice, inner, Some(expected)).as_deref(),
            Some("/p.slice/w.slice/a.service/other")
        );
        std::fs::remove_dir(unit.join("other")).unwrap();
        assert_eq!(cgroups.path(slice, inner, None), None);
    }

    #[test]
    fn a_cgroup_of_another_workload_has_no_path_here() {
        let mount = tempfile::tempdir().unwrap();
        let other = mount.path().join("p.slice/wx.slice/a.service");
        std::fs::create_dir_all(&other).unwrap();
        std::fs::create_dir_all(mount.path().join("p.slice/w.slice")).unwrap();
        let cgroups = Cgroups::new(mount.path());
        let hint = Some("/p.slice/wx.slice/a.service");
        assert_eq!(cgroups.path("/p.slice/w.slice", id(&other), hint), None);
    }

    #[test]
    fn a_search_is_bounded() {
        let mount = tempfile::tempdir().unwrap();
        let mut deep = mount.path().join("w.slice");
        for _ in 0..MAX_DEPTH + 1 {
            deep = deep.join("d");
        }
        std::fs::create_dir_all(&deep).unwrap();
        assert_eq!(Cgroups::new(mount.path()).path("/w.slice", id(&deep), None), None);
    }
}
