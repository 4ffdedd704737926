//! From a cgroup's path to the unit or container that it belongs to.
//!
//! Pure. Only the level directly below the workload's slice is read: PID 1 (or, as root, a container runtime)
//! makes the directories there. Whatever lies deeper may be in a delegated subtree, where the workload itself
//! chooses the names.

/// What the level below the slice says.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Placement<'a> {
    /// A service or scope of PID 1.
    pub unit: Option<&'a str>,
    /// The id of a container, 64 hex digits.
    pub container: Option<&'a str>,
}

/// The prefix of the cgroups that `callgate exec` makes; never a unit.
pub const EXEC_PREFIX: &str = "exec-";

/// Scopes that runtimes ask of PID 1 (systemd driver), and directories that they make themselves (cgroupfs
/// driver). What stands between prefix and suffix must be 64 hex digits.
const CONTAINER_SHAPES: &[(&str, &str)] = &[
    ("docker-", ".scope"),
    ("libpod-", ".scope"),
    ("cri-containerd-", ".scope"),
    ("crio-", ".scope"),
    ("libpod-", ""),
    ("", ""),
];

/// Reads `path` (a cgroup) as placed below `slice` (the workload's cgroup); both begin at the mount.
#[must_use]
pub fn placement<'a>(slice: &str, path: &'a str) -> Placement<'a> {
    let Some(below) = path.strip_prefix(slice).and_then(|rest| rest.strip_prefix('/')) else {
        return Placement::default();
    };
    let mut levels = below.split('/');
    let first = levels.next().unwrap_or_default();
    let container = match first {
        // podman's cgroupfs driver puts a fixed directory in between.
        "libpod_parent" => levels.next().and_then(container_id),
        _ => container_id(first),
    };
    Placement {
        unit: is_unit(first).then_some(first),
        container,
    }
}

/// The path of the level that [`placement`] read: `slice` and one name.
#[must_use]
pub fn first_level<'a>(slice: &str, path: &'a str) -> Option<&'a str> {
    let below = path.strip_prefix(slice)?.strip_prefix('/')?;
    let name = below.split('/').next().filter(|name| !name.is_empty())?;
    path.get(..slice.len() + 1 + name.len())
}

fn container_id(name: &str) -> Option<&str> {
    CONTAINER_SHAPES.iter().find_map(|(prefix, suffix)| {
        name.strip_prefix(prefix)?
            .strip_suffix(suffix)
            .filter(|id| id.len() == 64 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
    })
}

/// Whether it is a valid name of a service or scope (systemd.unit(5)) that isn't one of ours.
fn is_unit(name: &str) -> bool {
    let stem = name
        .strip_suffix(".service")
        .or_else(|| name.strip_suffix(".scope"));
    let valid = |stem: &str| {
        !stem.is_empty()
            && name.len() < 256
            && stem
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b))
            // An instance's name is whole: "a@.service" is a template and never runs.
            && !stem.ends_with('@')
            && !stem.starts_with('@')
    };
    stem.is_some_and(valid) && !name.starts_with(EXEC_PREFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLICE: &str = "/callgate.slice/callgate-x.slice";
    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[track_caller]
    fn check(below: &str, unit: Option<&str>, container: Option<&str>) {
        let path = format!("{SLICE}{below}");
        assert_eq!(placement(SLICE, &path), Placement { unit, container }, "{path}");
    }

    #[test]
    fn the_unit_is_the_name_that_pid_1_gave() {
        check("/a.service", Some("a.service"), None);
        check("/a@b.service", Some("a@b.service"), None);
        check("/run-r1.scope/inner", Some("run-r1.scope"), None);
        check("", None, None);
        check("/a.socket", None, None);
        check("/.service", None, None);
        check("/a@.service", None, None);
        check("/a b.service", None, None);
    }

    #[test]
    fn a_forged_name_below_a_delegation_boundary_counts_for_nothing() {
        check("/a.service/b.service", Some("a.service"), None);
        check("/plain/b.service", None, None);
        check(&format!("/a.service/docker-{ID}.scope"), Some("a.service"), None);
        check(&format!("/a.service/{ID}"), Some("a.service"), None);
        check("/exec-1/b.service", None, None);
        check("/exec-1.service", None, None);
    }

    #[test]
    fn a_path_outside_the_slice_says_nothing() {
        for path in [
            "/callgate.slice/callgate-xy.slice/a.service",
            "/callgate.slice/callgate-x.slicea.service",
            "/system.slice/a.service",
            "/a.service/callgate.slice/callgate-x.slice/b.service",
        ] {
            assert_eq!(placement(SLICE, path), Placement::default(), "{path}");
            assert_eq!(first_level(SLICE, path), None, "{path}");
        }
    }

    #[test]
    fn containers_are_told_by_the_known_shapes_at_the_first_level() {
        for shape in ["docker-", "libpod-", "cri-containerd-", "crio-"] {
            let scope = format!("{shape}{ID}.scope");
            check(&format!("/{scope}/init"), Some(&scope), Some(ID));
        }
        check(&format!("/{ID}"), None, Some(ID));
        check(&format!("/libpod_parent/libpod-{ID}"), None, Some(ID));
        check(
            &format!("/docker-{}.scope", ID.to_uppercase()),
            Some(&format!("docker-{}.scope", ID.to_uppercase())),
            None,
        );
        check(
            &format!("/docker-{ID}0.scope"),
            Some(&format!("docker-{ID}0.scope")),
            None,
        );
    }

    #[test]
    fn the_first_level_is_the_slice_and_one_name() {
        let path = format!("{SLICE}/a.service/b/c");
        assert_eq!(
            first_level(SLICE, &path),
            Some(format!("{SLICE}/a.service").as_str())
        );
        assert_eq!(first_level(SLICE, SLICE), None);
    }
}
