//! The check of whether ordinary users' commands can start: `callgate exec` keeps them from the host's services in a user
//! namespace.

use std::fs;
use std::path::Path;

use super::Check;
use crate::policy::{Policy, Workload};

const NAME: &str = "user namespaces";
/// Kernel settings that forbid an ordinary user to make one, or to mount in it, with the value that does. The latter two are
/// Debian's and Ubuntu's.
const FORBIDDING: &[(&str, &str)] = &[
    ("user/max_user_namespaces", "0"),
    ("user/max_mnt_namespaces", "0"),
    ("kernel/unprivileged_userns_clone", "0"),
    ("kernel/apparmor_restrict_unprivileged_userns", "1"),
];

/// `policy` is none if it has errors, of which its own check tells.
pub(super) fn check(policy: Option<&Policy>) -> Check {
    let needed = policy.is_some_and(|policy| policy.workloads().any(lets_users_exec));
    of(needed, |setting| {
        fs::read_to_string(Path::new("/proc/sys").join(setting)).ok()
    })
}

fn lets_users_exec(workload: &Workload) -> bool {
    let exec_by = workload.exec_by();
    !exec_by.users.is_empty() || !exec_by.groups.is_empty()
}

fn of(needed: bool, read: impl Fn(&str) -> Option<String>) -> Check {
    if !needed {
        return Check::pass(NAME, "not needed: no `exec_by` names ordinary users");
    }
    let forbids =
        |(setting, value): &&(&str, &str)| read(setting).is_some_and(|found| found.trim() == *value);
    let forbidding: Vec<_> = FORBIDDING
        .iter()
        .filter(forbids)
        .map(|(setting, value)| format!("{} is {value}", setting.replace('/', ".")))
        .collect();
    if forbidding.is_empty() {
        return Check::pass(NAME, "ordinary users that `exec_by` names can make them");
    }
    Check::warn(
        NAME,
        format!(
            "{}: `callgate exec` refuses to ordinary users what `exec_by` lets them run",
            forbidding.join(", ")
        ),
        "allow them (sysctl, or for AppArmor a profile for callgate with `userns`), or have root start the commands with --user",
    )
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn a_setting_that_forbids_them_is_named_where_they_are_needed() {
        let none = |_: &str| None;
        // As if one value were everywhere: each forbids something else.
        let zero = |_: &str| Some("0\n".to_owned());
        let one = |_: &str| Some("1\n".to_owned());
        assert_eq!(of(true, none).status, Status::Pass);
        assert_eq!(of(false, zero).status, Status::Pass);
        let named = |check: Check| {
            assert_eq!(check.status, Status::Warn);
            let settings = FORBIDDING.iter().map(|(setting, _)| setting.replace('/', "."));
            settings
                .filter(|setting| check.found.contains(setting))
                .collect::<Vec<_>>()
        };
        let by_zero = [
            "user.max_user_namespaces",
            "user.max_mnt_namespaces",
            "kernel.unprivileged_userns_clone",
        ];
        assert_eq!(named(of(true, zero)), by_zero);
        assert_eq!(
            named(of(true, one)),
            ["kernel.apparmor_restrict_unprivileged_userns"]
        );
    }
}
