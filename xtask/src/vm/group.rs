//! Which end-to-end tests a guest runs: those that stand or fall with the kernel.

/// Tests that are reported together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group<'a> {
    pub(crate) name: &'a str,
    /// Parts of the tests' names, as the test binary takes them.
    pub(crate) filters: &'a [&'a str],
}

/// What a kernel can do that callgate can't run on.
pub(crate) const LACKING: &[Group<'_>] = &[Group {
    name: "features",
    filters: &["features::"],
}];

/// One test of each kind of thing that the kernel does: what CI has time for on every kernel.
pub(crate) const QUICK: &[Group<'_>] = &[
    Group {
        name: "features",
        filters: &["features::"],
    },
    Group {
        name: "verifier",
        filters: &[VERIFIER],
    },
    Group {
        name: "capture",
        filters: &[
            "capture::a_connection_that_is_gone_lends_nobody_its_name",
            "capture::every_way_to_connect_is_redirected",
            "capture::only_tcp_and_udp_sockets_can_be_made",
            "capture::packets_with_a_route_of_their_own_do_not_leave",
            "capture::sockets_made_elsewhere_are_refused",
            "capture::udp_is_refused_except_dns_to_the_stub",
            "capture::what_the_agent_sends_from_a_loopback_address_stays_on_the_host",
        ],
    },
    Group {
        name: "identity",
        filters: &[
            "capture::a_redirected_connection_carries_its_callers_facts",
            "identity::connecting_and_then_becoming_the_allowed_program_is_refused",
            "identity::the_record_names_process_user_cgroup_and_executable",
        ],
    },
    Group {
        name: "netns",
        filters: &["netns::a_workload_in_another_namespace_is_served_there_and_its_calls_leave_from_there"],
    },
    Group {
        name: "fail closed",
        filters: &[
            "capture::a_dead_agents_port_taken_by_another_gets_nothing",
            "capture::a_silent_agent_means_refused",
            "fail_closed::a_killed_agent_refuses_connections_and_a_new_one_records_what_was_under_way",
        ],
    },
];

/// Whole modules.
pub(crate) const FULL: &[Group<'_>] = &[
    Group {
        name: "features",
        filters: &["features::"],
    },
    Group {
        name: "capture",
        filters: &["capture::"],
    },
    Group {
        name: "capture_wire",
        filters: &["capture_wire::"],
    },
    Group {
        name: "identity",
        filters: &["identity::"],
    },
    Group {
        name: "fail_closed",
        filters: &["fail_closed::"],
    },
    Group {
        name: "handed",
        filters: &["handed::"],
    },
    Group {
        name: "layout",
        filters: &["layout::"],
    },
    Group {
        name: "netns",
        filters: &["netns::"],
    },
    Group {
        name: "reflect",
        filters: &["reflect::"],
    },
    Group {
        name: "perimeter",
        filters: &["perimeter::"],
    },
    Group {
        name: "escape",
        filters: &["escape::"],
    },
    Group {
        name: "canary",
        filters: &["canary::"],
    },
    Group {
        name: "dns",
        filters: &["dns::"],
    },
    Group {
        name: "release",
        filters: &["release::"],
    },
];

const VERIFIER: &str = "capture::the_verifier_accepts_every_program_of_every_build";

/// Tests that do so much at once, or count what happens within a second, that an emulated machine runs into limits
/// of time which are the product's. What they are about does not hang on the kernel's version.
const TIMED: &[&str] = &[
    "netns::kept::a_restart_under_load_from_another_namespace_loses_no_call",
    "netns::noticed::a_fresh_namespace_is_served_soon_after_its_first_call_which_is_refused_on_record",
    "netns::noticed::a_namespace_whose_loopback_device_comes_up_late_is_served_soon_after_the_next_call",
    "netns::noticed::a_workload_that_makes_namespaces_in_a_loop_keeps_nobody_else_waiting",
];

/// Tests that start what a guest has not: podman, with all that it needs; a booted Debian.
const ELSEWHERE: &[&str] = &[
    "canary::installed::",
    "capture_wire::booted::",
    "netns::container::",
    "netns::rootless::",
    "escape::services::programs_of_the_host_that_act_for_others_are_out_of_a_commands_reach",
];

/// The file that PID 1 reads: a line for each group, its name (blanks as `_`) and the arguments of the test binary,
/// which leaves out what is not for a guest, unless it was `asked` for by name.
pub(crate) fn table(groups: &[Group<'_>], asked: bool) -> String {
    let skipped = [TIMED, ELSEWHERE].concat();
    let skipped = skipped.iter().filter(|_| !asked);
    let skips: String = skipped.map(|name| format!(" --skip {name}")).collect();
    groups
        .iter()
        .map(|group| format!("{} {}{skips}\n", group.word(), group.filters.join(" ")))
        .collect()
}

impl Group<'_> {
    /// The name as one word.
    pub(crate) fn word(&self) -> String {
        self.name.replace(' ', "_")
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::cmd;

    #[test]
    fn each_group_is_a_line_of_its_own() {
        let table = table(QUICK, false);
        assert_eq!(table.lines().count(), QUICK.len());
        assert!(
            table.contains("\nfail_closed capture::a_dead_agents_port"),
            "{table}"
        );
    }

    #[test]
    fn what_is_not_for_a_guest_is_left_out_unless_it_is_asked_for() {
        let skip = "--skip netns::container::";
        assert!(table(FULL, false).lines().all(|line| line.contains(skip)));
        assert!(!table(FULL, true).contains("--skip"));
    }

    /// A test that was given another name would run, or be missed, without a word.
    #[test]
    fn every_test_that_is_named_is_there() {
        let tests = cmd::root().join("tests/e2e");
        let quick = QUICK.iter().flat_map(|group| group.filters).copied();
        for name in quick
            .chain(TIMED.iter().copied())
            .chain(ELSEWHERE.iter().copied())
            .filter(|name| !name.ends_with("::"))
        {
            let (module, test) = name.rsplit_once("::").unwrap();
            let module = module.split("::").next().unwrap();
            let found = sources(&tests, module)
                .iter()
                .any(|file| fs::read_to_string(file).unwrap().contains(&format!("fn {test}")));
            assert!(found, "{name}");
        }
    }

    #[test]
    fn what_boots_a_debian_is_not_for_a_guest() {
        let tests = cmd::root().join("tests/e2e");
        for group in FULL {
            for file in sources(&tests, group.filters[0].trim_end_matches("::")) {
                let below = file.strip_prefix(&tests).unwrap().with_extension("");
                let module = format!("{}::", below.to_str().unwrap().replace('/', "::"));
                if ELSEWHERE.contains(&module.as_str()) {
                    continue;
                }
                let text = fs::read_to_string(&file).unwrap_or_default();
                for test in text.split("#[test]").skip(1) {
                    let needs = test
                        .lines()
                        .find(|line| line.trim_start().starts_with("require!("));
                    let (_, rest) = test.split_once("fn ").unwrap();
                    let (name, _) = rest.split_once('(').unwrap();
                    let is_known = ELSEWHERE
                        .iter()
                        .any(|known| known.ends_with(&format!("::{name}")));
                    assert!(
                        is_known || !needs.is_some_and(|line| line.contains("Bed")),
                        "{name} of {}",
                        file.display()
                    );
                }
            }
        }
    }

    /// A module's file and those below it.
    fn sources(tests: &Path, module: &str) -> Vec<PathBuf> {
        let below = fs::read_dir(tests.join(module)).into_iter().flatten();
        let mut files: Vec<_> = below.map(|entry| entry.unwrap().path()).collect();
        files.push(tests.join(format!("{module}.rs")));
        files
    }
}
