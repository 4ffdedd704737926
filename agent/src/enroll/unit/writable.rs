//! Where a service may write, as far as its own settings say (systemd.exec(5), "Sandboxing"): the agent's pins, state and
//! records can be put elsewhere than where `callgate.service` lets it.

use std::path::{Path, PathBuf};

use super::paths::{WRITABLE, made, sources};
use super::{Facts, drop_in};

/// Why a service can't write somewhere.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Closed {
    /// It sees it read-only.
    ReadOnly,
    /// It does not see what the host has there.
    Hidden,
}

/// Settings of systemd that hide what the host has in a directory.
const HIDING: &[(&str, &[&str])] = &[
    ("ProtectHome", &["/home", "/root", "/run/user"]),
    ("PrivateTmp", &["/tmp", "/var/tmp"]),
];

/// Whether the service can't write below `path`, and why.
#[must_use]
pub fn closed(facts: &Facts, path: &Path) -> Option<Closed> {
    let hides = |setting: &str| !matches!(facts.get(setting), "" | "no" | "read-only");
    let below = |dirs: &[&str]| dirs.iter().any(|dir| path.starts_with(dir));
    if HIDING.iter().any(|(setting, dirs)| hides(setting) && below(dirs)) {
        return Some(Closed::Hidden);
    }
    // Of several that are said of a path the longest counts.
    let longest = |dirs: Vec<PathBuf>| {
        let around = dirs.into_iter().filter(|dir| path.starts_with(dir));
        around.map(|dir| dir.as_os_str().len()).max()
    };
    let writable = WRITABLE.iter().flat_map(|setting| sources(facts, setting));
    let writable = longest(writable.chain(made(facts)).collect());
    (longest(read_only(facts)) > writable).then_some(Closed::ReadOnly)
}

/// The line of a drop-in that lets a service write there, once something is there.
#[must_use]
pub fn line(path: &Path) -> String {
    format!("ReadWritePaths={}", drop_in::optional(path))
}

fn read_only(facts: &Facts) -> Vec<PathBuf> {
    let mut dirs = sources(facts, "ReadOnlyPaths");
    let by_system: &[&str] = match facts.get("ProtectSystem") {
        "strict" => &["/"],
        "full" => &["/boot", "/efi", "/etc", "/usr"],
        "yes" => &["/boot", "/efi", "/usr"],
        _ => &[],
    };
    dirs.extend(by_system.iter().map(PathBuf::from));
    if facts.is("ProtectKernelTunables") {
        dirs.extend(["/proc", "/sys"].map(PathBuf::from));
    }
    if facts.get("ProtectHome") == "read-only" {
        dirs.extend(["/home", "/root", "/run/user"].map(PathBuf::from));
    }
    dirs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_path_that_a_setting_names_counts() {
        let shown = "ProtectSystem=strict\nProtectHome=yes\nPrivateTmp=yes\nProtectKernelTunables=yes\nReadOnlyPaths=/sys\nReadWritePaths=-/sys/fs/bpf/callgate /sys/fs/cgroup -/srv/pins\nStateDirectory=callgate\nRuntimeDirectory=callgate\nLogsDirectory=callgate\nConfigurationDirectory=callgate\n";
        let facts = Facts::read("callgate.service", shown);
        let of = |path: &str| closed(&facts, Path::new(path));
        for open in [
            "/sys/fs/bpf/callgate",
            "/sys/fs/cgroup/callgate.slice",
            "/srv/pins",
            "/srv/pins/a",
            "/var/lib/callgate",
            "/run/callgate",
            "/var/log/callgate",
        ] {
            assert_eq!(of(open), None, "{open}");
        }
        for closed in [
            "/sys/fs/bpf/other",
            "/srv/pins2",
            "/var/lib/other",
            "/etc/callgate",
            "/run",
        ] {
            assert_eq!(of(closed), Some(Closed::ReadOnly), "{closed}");
        }
        for hidden in ["/home/x", "/tmp/pins"] {
            assert_eq!(of(hidden), Some(Closed::Hidden), "{hidden}");
        }
        let plain = Facts::read("callgate.service", "ProtectSystem=no\nPrivateTmp=no\n");
        assert_eq!(closed(&plain, Path::new("/srv/pins")), None);
    }
}
