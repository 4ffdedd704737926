//! Programs that are not ours and run for the workloads' cgroups too.
//!
//! The kernel runs the programs of a cgroup before those of its ancestors: another's on the way up sees addresses that are
//! turned round already, and may change them again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use aya::programs::loaded_programs;

use super::Error;
use super::pins::Pins;
use super::sys::{self, Hook};

/// How many cgroups are looked at; a host with more has the same programs on most of them.
const MOST: usize = 10_000;

/// A program of somebody else's.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Other {
    /// Its number, as `bpftool prog` lists it.
    pub id: u32,
    /// Its name; empty if its loader gave none.
    pub name: String,
    /// Where it hooks in.
    pub hook: &'static str,
}

impl Other {
    /// Whether it only ever lets packets through or drops them. Those of systemd's `IPAddressDeny=` do.
    #[must_use]
    pub fn only_filters(&self) -> bool {
        matches!(self.hook, "ingress" | "egress")
    }
}

/// Those that run for the cgroup `parent` below `mount` and for what lies in it, or for the whole host while there is no
/// such cgroup. Ours are told by the links below `bpffs_dir`.
///
/// # Errors
/// If pins or cgroups can't be read, or the kernel refuses (it asks for CAP_BPF or CAP_NET_ADMIN).
pub fn others(mount: &Path, parent: &str, bpffs_dir: &Path) -> Result<BTreeSet<Other>, Error> {
    let ours = Pins::programs(bpffs_dir)?;
    let names: BTreeMap<u32, String> = loaded_programs()
        .flatten()
        .map(|info| (info.id(), info.name_as_str().unwrap_or_default().to_owned()))
        .collect();
    let parent = mount.join(parent.trim_start_matches('/'));
    let mut open = vec![if parent.exists() { parent } else { mount.to_owned() }];
    let mut found = BTreeSet::new();
    for _ in 0..MOST {
        let Some(cgroup) = open.pop() else { break };
        for (hook, ids) in effective(&cgroup)? {
            let others = ids.into_iter().filter(|id| !ours.contains(id));
            found.extend(others.map(|id| Other {
                id,
                name: names.get(&id).cloned().unwrap_or_default(),
                hook,
            }));
        }
        if cgroup != mount {
            open.extend(children(&cgroup)?);
        }
    }
    Ok(found)
}

/// What runs at each hook; nothing for a cgroup that is gone by now.
fn effective(cgroup: &Path) -> Result<Vec<(&'static str, Vec<u32>)>, Error> {
    let directory = match File::open(cgroup) {
        Ok(directory) => directory,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(Error::file("open", cgroup, source)),
    };
    let at = |(hook, name)| match sys::effective(directory.as_fd(), hook) {
        Ok(ids) => Some(Ok((name, ids))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(source) => Some(Err(Error::file("list the programs of", cgroup, source))),
    };
    Hook::ALL.into_iter().filter_map(at).collect()
}

fn children(cgroup: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(cgroup) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound) => return Ok(Vec::new()),
        Err(source) => return Err(Error::file("list", cgroup, source)),
    };
    let paths = entries.flatten().map(|entry| entry.path());
    Ok(paths.filter(|path| path.is_dir()).collect())
}
