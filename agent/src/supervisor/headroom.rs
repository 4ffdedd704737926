//! How much memory the agent takes up of what its unit may, from the cgroup v2 files of its unit and of those above.
//!
//! Page cache does not count: records and the in-flight table fill it, and the kernel takes it back when it must.

use std::fs;
use std::path::{Path, PathBuf};

/// Percent points below the limit at which connections are accepted again.
const RELIEF: u64 = 5;

/// The memory of the agent's own unit.
#[derive(Debug)]
pub(super) struct Headroom {
    cgroups: Vec<PathBuf>,
    percent: u64,
    short: bool,
}

impl Headroom {
    /// Watches the cgroup that this process is in. Without the memory controller there (a hybrid layout has it
    /// elsewhere) memory is never short.
    pub(super) fn of_self(mount: &Path, percent: u8) -> Self {
        let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let own = text.lines().find_map(|line| line.strip_prefix("0::"));
        Self::of(mount, own.unwrap_or("/"), percent)
    }

    fn of(mount: &Path, own: &str, percent: u8) -> Self {
        let own = mount.join(own.trim_start_matches('/'));
        let cgroups = own.ancestors().take_while(|dir| dir.starts_with(mount));
        Self {
            cgroups: cgroups.map(Path::to_owned).collect(),
            percent: u64::from(percent),
            short: false,
        }
    }

    /// Whether memory was short at the last look.
    pub(super) fn is_short(&self) -> bool {
        self.short
    }

    /// Looks again; says whether that changed.
    pub(super) fn look(&mut self) -> bool {
        let most = self.cgroups.iter().filter_map(|dir| used_percent(dir)).max();
        let most = most.unwrap_or(0);
        let before = self.short;
        self.short = most > self.percent || (before && most + RELIEF > self.percent);
        if self.short != before && self.short {
            tracing::warn!(
                percent = most,
                "the agent's memory is short; new connections are refused"
            );
        } else if self.short != before {
            tracing::info!(percent = most, "the agent's memory is no longer short");
        }
        self.short != before
    }
}

/// What processes in this cgroup hold of what they may; `None` without a limit.
fn used_percent(dir: &Path) -> Option<u64> {
    let number = |name: &str| {
        fs::read_to_string(dir.join(name))
            .ok()?
            .trim()
            .parse::<u64>()
            .ok()
    };
    // "max" is no number.
    let limit = number("memory.max")?;
    let current = number("memory.current")?;
    let stat = fs::read_to_string(dir.join("memory.stat")).ok()?;
    let cache: u64 = stat
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(name, _)| ["active_file", "inactive_file"].contains(name))
        .filter_map(|(_, bytes)| bytes.parse::<u64>().ok())
        .sum();
    Some(current.saturating_sub(cache).saturating_mul(100) / limit.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(dir: &Path, max: &str, current: u64, cache: u64) {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("memory.max"), format!("{max}\n")).unwrap();
        fs::write(dir.join("memory.current"), format!("{current}\n")).unwrap();
        let stat = format!("anon 5\nactive_file {cache}\ninactive_file 0\nslab 3\n");
        fs::write(dir.join("memory.stat"), stat).unwrap();
    }

    #[test]
    fn memory_is_short_above_the_share_and_until_it_is_well_below() {
        let mount = tempfile::tempdir().unwrap();
        let unit = mount.path().join("system.slice/callgate.service");
        set(&unit, "1000", 100, 0);
        let mut memory = Headroom::of(mount.path(), "/system.slice/callgate.service", 90);
        assert!(!memory.look() && !memory.is_short());
        set(&unit, "1000", 950, 0);
        assert!(memory.look() && memory.is_short());
        set(&unit, "1000", 880, 0);
        assert!(!memory.look() && memory.is_short());
        set(&unit, "1000", 840, 0);
        assert!(memory.look() && !memory.is_short());
    }

    #[test]
    fn page_cache_does_not_count_and_a_limit_above_does() {
        let mount = tempfile::tempdir().unwrap();
        let (slice, unit) = (mount.path().join("a.slice"), mount.path().join("a.slice/b"));
        set(&unit, "max", 950, 0);
        set(&slice, "1000", 950, 800);
        let mut memory = Headroom::of(mount.path(), "/a.slice/b", 90);
        assert!(!memory.look());
        set(&slice, "1000", 950, 10);
        assert!(memory.look());
    }

    #[test]
    fn without_the_controller_memory_is_never_short() {
        let mount = tempfile::tempdir().unwrap();
        assert!(!Headroom::of(mount.path(), "/x", 90).look());
    }
}
