//! Settings by which systemd itself would open, copy or make over to a unit what is the agent's: it does that as root,
//! before anything is hidden from the unit.

use std::path::{Path, PathBuf};

use super::findings::Found;
use super::{Facts, Setup};
use crate::enroll::reach::CREDENTIAL_STORES;

/// Of which the files tell, since systemd does not show them.
const STREAMS: &[&str] = &["StandardInput", "StandardOutput", "StandardError"];
const CREDENTIALS: &[&str] = &["LoadCredential", "LoadCredentialEncrypted"];
/// Directories that systemd makes and gives to the unit's user, with where they are.
const DIRECTORIES: &[(&str, &str)] = &[
    ("CacheDirectory", "/var/cache"),
    ("ConfigurationDirectory", "/etc"),
    ("LogsDirectory", "/var/log"),
    ("RuntimeDirectory", "/run"),
    ("StateDirectory", "/var/lib"),
];

/// Refuses them, each with its line.
pub(super) fn refuse(found: &mut Found, facts: &Facts, setup: &Setup) {
    let mut refuse = |setting, value: &str, what: &Path| {
        let text = format!(
            "{setting}={value} gives it what is the agent's ({}); take that line out",
            what.display()
        );
        found.refuse(setting, text);
    };
    for setting in CREDENTIALS {
        for value in facts.written(setting) {
            if let Some(what) = of_agent(&source(value), setup) {
                refuse(setting, value, &what);
            }
        }
    }
    for setting in STREAMS {
        for value in facts.written(setting) {
            let path = ["file:", "append:", "truncate:"]
                .into_iter()
                .find_map(|kind| value.strip_prefix(kind));
            if let Some(what) = path.and_then(|path| owned(&expanded(path), setup)) {
                refuse(setting, value, what);
            }
        }
    }
    for shown in facts.all("EnvironmentFiles") {
        let path = shown.rsplit_once(" (").map_or(shown, |(path, _)| path);
        if let Some(what) = owned(Path::new(path), setup) {
            refuse("EnvironmentFile", path, what);
        }
    }
    for (setting, parent) in DIRECTORIES {
        for name in facts.words(setting) {
            if let Some(what) = owned(&Path::new(parent).join(name), setup) {
                refuse(setting, name, what);
            }
        }
    }
}

impl Facts {
    /// Where its credentials come from: paths, or names in one of the stores.
    pub fn credentials(&self) -> impl Iterator<Item = &str> {
        CREDENTIALS
            .iter()
            .flat_map(|setting| self.written(setting))
            .map(|value| value.split_once(':').map_or(value, |(_, path)| path))
    }
}

/// systemd.exec(5): "ID:PATH", or "ID" for a file of that name in a store.
fn source(value: &str) -> String {
    let path = value.split_once(':').map_or(value, |(_, path)| path);
    expanded(path).to_string_lossy().into_owned()
}

/// Whether a credential from here is one of the agent's, or a file of its.
fn of_agent(source: &str, setup: &Setup) -> Option<PathBuf> {
    let places = places(source);
    let agents = setup
        .credentials
        .iter()
        .flat_map(|one| self::places(&expanded(one).to_string_lossy()));
    let same = agents.into_iter().find(|one| places.contains(one));
    same.or_else(|| {
        let owned = places.iter().find_map(|place| owned(place, setup));
        owned.map(Path::to_owned)
    })
}

fn places(source: &str) -> Vec<PathBuf> {
    if source.starts_with('/') {
        return vec![source.into()];
    }
    let stores = CREDENTIAL_STORES.iter().map(Path::new);
    stores.map(|store| store.join(source)).collect()
}

/// What of the agent's is there, below it, or around it. The roots that all shall trust are for all.
fn owned<'a>(path: &Path, setup: &'a Setup) -> Option<&'a Path> {
    let path = super::findings::of_run(path);
    if !setup.trust.as_os_str().is_empty() && path.starts_with(&setup.trust) {
        return None;
    }
    let own = setup.own.iter().map(PathBuf::as_path);
    own.filter(|own| path.starts_with(own) || own.starts_with(&path))
        .max_by_key(|own| own.as_os_str().len())
}

/// The specifiers for directories (systemd.unit(5)), as the service manager of the host sets them.
fn expanded(path: &str) -> PathBuf {
    let pairs = [
        ("%C", "/var/cache"),
        ("%E", "/etc"),
        ("%L", "/var/log"),
        ("%S", "/var/lib"),
        ("%T", "/tmp"),
        ("%t", "/run"),
        ("%%", "%"),
    ];
    let plain = path.trim_matches('"').to_owned();
    let expand = |text: String, (from, to): (&str, &str)| text.replace(from, to);
    pairs.into_iter().fold(plain, expand).into()
}
