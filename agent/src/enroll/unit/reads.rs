//! Settings by which systemd itself would open, copy or make over to a unit what is the agent's: it does that as root,
//! before anything is hidden from the unit.

use std::path::{Path, PathBuf};

use super::findings::Found;
use super::paths::{self, CREDENTIALS, Entry, credential, path_of_credential};
use super::{Facts, Setup};

/// Refuses them, each with its line.
pub(super) fn refuse(found: &mut Found, facts: &Facts, setup: &Setup) {
    for entry in paths::opened(facts) {
        if let Some(what) = of_agent(&entry, setup) {
            let Entry { setting, value, .. } = entry;
            let text = format!(
                "{setting}={value} gives it what is the agent's ({}); take that line out",
                what.display()
            );
            found.refuse(setting, text);
        }
    }
}

impl Facts {
    /// Where its credentials come from: paths, or names in one of the stores.
    pub fn credentials(&self) -> impl Iterator<Item = &str> {
        CREDENTIALS
            .iter()
            .flat_map(|setting| self.written(setting))
            .map(path_of_credential)
    }
}

/// What of the agent's this is: one of its credentials, or a file of its.
fn of_agent(entry: &Entry<'_>, setup: &Setup) -> Option<PathBuf> {
    let is_same = |one: &PathBuf| {
        let ways = setup.ways(one);
        let others = entry.paths.iter().flat_map(|path| setup.ways(path));
        CREDENTIALS.contains(&entry.setting) && others.into_iter().any(|other| ways.contains(&other))
    };
    let mut agents = setup.credentials.iter().flat_map(|one| credential(one));
    agents.find(is_same).or_else(|| {
        let owned = entry.paths.iter().find_map(|path| owned(path, setup));
        owned.map(Path::to_owned)
    })
}

/// What of the agent's is there, below it, or around it. The roots that all shall trust are for all.
fn owned<'a>(path: &Path, setup: &'a Setup) -> Option<&'a Path> {
    if !setup.trust.as_os_str().is_empty() && setup.ends_in(path, &setup.trust) {
        return None;
    }
    let own = setup.own.iter().map(PathBuf::as_path);
    own.filter(|own| setup.overlap(path, own))
        .max_by_key(|own| own.as_os_str().len())
}
