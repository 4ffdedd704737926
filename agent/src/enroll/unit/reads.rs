//! Settings by which systemd itself would open, copy or make over to a unit what is the agent's: it does that as root,
//! before anything is hidden from the unit.

use std::path::{Path, PathBuf};

use super::findings::Found;
use super::paths::{self, CREDENTIALS, Entry, credential, path_of_credential};
use super::{Facts, Setup};
use crate::enroll::reach::CREDENTIAL_STORES;

/// Credentials of a store by the beginning of their names, since systemd 254.
const IMPORTED: &str = "ImportCredential";

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
    for value in facts.written(IMPORTED) {
        let mut agents = setup.credentials.iter().filter_map(|one| in_store(one));
        if let Some(name) = agents.find(|name| imports(value, name)) {
            let text =
                format!("{IMPORTED}={value} gives it what is the agent's ({name}); take that line out");
            found.refuse(IMPORTED, text);
        }
    }
    for (setting, value) in paths::untold(facts) {
        let text = format!(
            "{setting}={value} has a blank in a path and a \"%\", so neither systemd nor its files tell where it leads; write the path out"
        );
        found.refuse(setting, text);
    }
}

/// The name of a credential that lies in a store.
fn in_store(source: &str) -> Option<&str> {
    let stores = CREDENTIAL_STORES.iter();
    let mut below = stores.filter_map(|store| source.strip_prefix(store)?.strip_prefix('/'));
    below
        .next()
        .or_else(|| Some(source).filter(|source| !source.starts_with('/')))
}

/// systemd.exec(5): a name or its beginning and '*', and since systemd 257 a new name behind a colon.
fn imports(value: &str, name: &str) -> bool {
    let asked = value.split(':').next().unwrap_or_default();
    match asked.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => name == asked,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_imported_is_told_by_its_beginning() {
        assert!(imports("*", "stripe") && imports("str*:own", "stripe") && imports("stripe", "stripe"));
        assert!(!imports("str", "stripe") && !imports("stripe.*", "stripe"));
        assert_eq!(in_store("/etc/credstore/stripe"), Some("stripe"));
        assert_eq!(in_store("stripe"), Some("stripe"));
        assert_eq!(in_store("/etc/callgate/secrets/stripe"), None);
    }
}
