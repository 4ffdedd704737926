//! The agent's own service on this host: whether its settings let it do what the agent's say.

use std::path::{Path, PathBuf};

use super::host;
use crate::config::{Config, DEFAULT_PATH};
use crate::enroll::unit::{AGENT_UNIT, Closed, Facts, closed, writable_line};

/// A place that the agent is told to write to and its service does not let it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Unwritable {
    /// The key that names it, as a path into the settings: `audit/file`.
    pub key: &'static str,
    /// What is wrong.
    pub what: String,
    /// What to do, with the lines of a drop-in.
    pub fix: String,
}

/// Whether the agent's own service runs with these settings and sees no home directories. Where systemd can't be asked
/// it starts nothing.
#[must_use]
pub fn sees_no_homes(config: &Path) -> bool {
    shown().is_some_and(|facts| facts.hides_homes_from(&absolute(config), DEFAULT_PATH))
}

/// Whether all that the agent writes is where the packaged service lets it.
#[must_use]
pub fn is_usual(config: &Config) -> bool {
    places(config) == places(&Config::default())
}

/// Where the agent can't write, if it is its own service that runs it with these settings.
#[must_use]
pub fn unwritable(config: &Config) -> Vec<Unwritable> {
    match shown() {
        Some(facts) if facts.runs_with(&absolute(&config.file), DEFAULT_PATH) => found(&facts, config),
        Some(_) | None => Vec::new(),
    }
}

fn shown() -> Option<Facts> {
    host::shown(AGENT_UNIT).ok()
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// The directories, each with the key that names it.
fn places(config: &Config) -> [(&'static str, PathBuf); 5] {
    let above = |file: &Path| file.parent().unwrap_or(file).to_owned();
    [
        ("bpffs_dir", config.bpffs_dir.clone()),
        ("state_dir", config.state_dir.clone()),
        ("runtime_dir", config.runtime_dir.clone()),
        ("admin_socket", above(&config.admin_socket)),
        ("audit/file", above(&config.audit.file)),
    ]
}

fn found(facts: &Facts, config: &Config) -> Vec<Unwritable> {
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let unwritable = places(config).into_iter().filter_map(|(key, dir)| {
        let (why, fix) = match closed(facts, &real(&dir))? {
            Closed::ReadOnly => ("sees it read-only", drop_in(key, &dir)),
            Closed::Hidden => (
                "does not see what is there",
                "choose a place outside of homes and of /tmp".to_owned(),
            ),
        };
        let what = format!(
            "{}: {AGENT_UNIT} {why} ({}), so the agent does not start",
            dir.display(),
            key.replace('/', ".")
        );
        Some(Unwritable { key, what, fix })
    });
    unwritable.collect()
}

fn drop_in(key: &str, dir: &Path) -> String {
    // `callgate prepare` makes that of the pins; the agent may make none.
    let first = match key {
        "bpffs_dir" => String::new(),
        _ => format!("make it (install -d -m 0700 {}) and ", dir.display()),
    };
    format!(
        "{first}write the lines \"[Service]\" and {:?} to /etc/systemd/system/{AGENT_UNIT}.d/paths.conf, then: systemctl daemon-reload",
        writable_line(dir)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_the_service_may_not_write_is_named_with_the_line_that_opens_it() {
        let shown = "ProtectSystem=strict\nProtectHome=yes\nReadWritePaths=-/sys/fs/bpf/callgate\nStateDirectory=callgate\nRuntimeDirectory=callgate\nLogsDirectory=callgate\n";
        let facts = Facts::read(AGENT_UNIT, shown);
        let mut config = Config::default();
        assert_eq!(found(&facts, &config), []);
        assert!(is_usual(&config));
        config.bpffs_dir = "/srv/no such/pins".into();
        config.audit.file = "/home/nobody-here/audit.jsonl".into();
        assert!(!is_usual(&config));
        let all = found(&facts, &config);
        let keys: Vec<_> = all.iter().map(|one| one.key).collect();
        assert_eq!(keys, ["bpffs_dir", "audit/file"]);
        assert!(all[0].fix.contains("ReadWritePaths="), "{all:?}");
        assert!(all[0].fix.contains("-/srv/no such/pins"), "{all:?}");
        assert!(all[1].fix.contains("choose a place"), "{all:?}");
    }
}
