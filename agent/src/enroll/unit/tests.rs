//! What a unit becomes, and what is said of it.

use super::*;

const PLAIN: &str = "Id=billing.service\nType=simple\nUser=billing\nSlice=system.slice\nCapabilityBoundingSet=cap_chown cap_net_raw\n";

fn setup() -> Setup {
    Setup {
        marker: "/run/callgate/armed/billing".into(),
        trust: "/run/callgate/trust".into(),
        over: vec![(
            "/run/callgate/trust/over/etc/ssl/certs".into(),
            "/etc/ssl/certs".into(),
        )],
        variables: vec![
            ("SSL_CERT_FILE".into(), "/run/callgate/trust/ca-bundle.pem".into()),
            ("JAVA_TOOL_OPTIONS".into(), "-Djavax.net.ssl.trustStore=/t".into()),
        ],
        direct: vec!["10.0.5.0/24".parse().unwrap()],
        ..Setup::default()
    }
}

fn planned(shown: &str, setup: &Setup) -> Plan {
    let name = WorkloadName::parse("billing").unwrap();
    plan(&Facts::read("billing.service", shown), &name, setup)
}

#[track_caller]
fn has(plan: &Plan, lines: &[&str]) {
    for line in lines {
        assert!(
            plan.drop_in.lines().any(|one| one == *line),
            "{line}\n{}",
            plan.drop_in
        );
    }
}

#[track_caller]
fn finds(shown: &str, weight: Weight, setting: &str, part: &str) {
    let plan = planned(&format!("{PLAIN}{shown}"), &setup());
    let found = plan.findings.iter().find(|finding| finding.setting == setting);
    let found = found.unwrap_or_else(|| panic!("{setting} not among {:?}", plan.findings));
    assert_eq!(found.weight, weight, "{found:?}");
    assert!(found.text.contains(part), "{found:?}");
}

#[test]
fn an_ordinary_unit_is_placed_held_and_trusts_and_nothing_is_said() {
    let plan = planned("Id=billing.service\nUser=billing\nSlice=system.slice\n", &setup());
    assert_eq!(plan.findings, []);
    has(
        &plan,
        &[
            "Wants=callgate.service",
            "After=callgate.service",
            "AssertPathExists=/run/callgate/armed/billing",
            "Slice=callgate-billing.slice",
            "Delegate=no",
            "RestrictAddressFamilies=",
            "RestrictAddressFamilies=AF_INET AF_INET6 AF_NETLINK AF_UNIX",
            "NoNewPrivileges=yes",
            "InaccessiblePaths=-/run/docker.sock",
            "IPAddressDeny=any",
            "IPAddressAllow=",
            "IPAddressAllow=localhost 10.0.5.0/24",
            "BindReadOnlyPaths=/run/callgate/trust/over/etc/ssl/certs:/etc/ssl/certs",
            "Environment=SSL_CERT_FILE=/run/callgate/trust/ca-bundle.pem",
        ],
    );
    assert!(!plan.drop_in.contains("\nRequires"), "{}", plan.drop_in);
}

#[test]
fn a_name_with_a_dash_names_the_slice_as_systemd_does() {
    let name = WorkloadName::parse("pay-out").unwrap();
    let plan = plan(&Facts::read("x.service", ""), &name, &setup());
    has(&plan, &["Slice=callgate-pay\\x2dout.slice"]);
}

#[test]
fn a_unit_keeps_what_it_had_as_far_as_a_workload_may() {
    let shown = "RestrictAddressFamilies=AF_UNIX AF_INET AF_PACKET\nCapabilityBoundingSet=cap_chown cap_sys_admin\nAmbientCapabilities=cap_net_bind_service cap_net_raw\n";
    let plan = planned(shown, &setup());
    has(
        &plan,
        &[
            "RestrictAddressFamilies=AF_INET AF_UNIX",
            "CapabilityBoundingSet=CAP_CHOWN",
            "AmbientCapabilities=CAP_NET_BIND_SERVICE",
        ],
    );
    let denied = planned("RestrictAddressFamilies=~AF_NETLINK AF_PACKET\n", &setup());
    has(&denied, &["RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX"]);
    let none = planned("RestrictAddressFamilies=AF_PACKET\n", &setup());
    has(&none, &["RestrictAddressFamilies=none"]);
}

#[test]
fn java_options_of_the_unit_stay_and_ours_are_not_added_twice() {
    let shown = "Environment=A=b \"JAVA_TOOL_OPTIONS=-Xmx1g -Djavax.net.ssl.trustStore=/old\"\n";
    let line = "Environment=\"JAVA_TOOL_OPTIONS=-Xmx1g -Djavax.net.ssl.trustStore=/t\"";
    has(&planned(shown, &setup()), &[line]);
}

#[test]
fn a_list_of_allowed_calls_answers_what_is_taken_from_it_with_an_error() {
    let shown = "SystemCallFilter=read write\n";
    has(&planned(shown, &setup()), &["SystemCallErrorNumber=EPERM"]);
    let own = planned(
        "SystemCallFilter=read write\nSystemCallErrorNumber=ENOSYS\n",
        &setup(),
    );
    assert!(!own.drop_in.contains("SystemCallErrorNumber"));
    assert!(!planned(PLAIN, &setup()).drop_in.contains("SystemCallErrorNumber"));
}

#[test]
fn a_workload_that_takes_connections_is_not_cut_off_from_its_callers() {
    let listening = Setup {
        listen: vec![8080],
        ..setup()
    };
    assert!(!planned(PLAIN, &listening).drop_in.contains("\nIPAddress"));
    let denying = planned("IPAddressDeny=::/0 0.0.0.0/0\n", &listening);
    has(&denying, &["IPAddressAllow=localhost"]);
}

#[test]
fn what_is_left_open_is_said_and_not_hidden() {
    let open = Setup {
        left_open: vec!["/run/dbus/system_bus_socket".into()],
        ..setup()
    };
    let plan = planned("Type=dbus\nUser=u\nBusName=x.y\n", &open);
    assert!(!plan.is_refused(), "{:?}", plan.findings);
    assert!(!plan.drop_in.contains("system_bus_socket"));
    assert_eq!(plan.findings.len(), 1, "{:?}", plan.findings);
}

#[test]
fn percent_signs_and_blanks_of_paths_reach_systemd_as_they_are() {
    let odd = Setup {
        hidden: vec!["/etc/a b/100%".into()],
        ..setup()
    };
    has(&planned(PLAIN, &odd), &["InaccessiblePaths=\"-/etc/a b/100%%\""]);
}

#[test]
fn a_line_break_in_a_path_makes_no_setting_and_is_refused() {
    let odd = Setup {
        hidden: vec!["/etc/x\nExecStartPre=+/bin/sh".into()],
        ..setup()
    };
    let plan = planned(PLAIN, &odd);
    assert!(plan.is_refused());
    assert!(!plan.drop_in.contains("\nExecStartPre"), "{}", plan.drop_in);
}

#[test]
fn what_cannot_be_held_is_refused_with_the_reason() {
    use Weight::Refusal;
    finds("PrivateNetwork=yes\n", Refusal, "PrivateNetwork", "no way out");
    finds("Delegate=yes\n", Refusal, "Delegate", "cgroup tree");
    finds("PAMName=login\n", Refusal, "PAMName", "login session");
    finds("Transient=yes\n", Refusal, "Transient", "systemd-run");
    finds("BusName=org.example\n", Refusal, "BusName", "--leave-open");
    finds(
        "Before=shutdown.target network.target\n",
        Refusal,
        "Before",
        "wait",
    );
    finds(
        "BindPaths=/var/run/docker.sock:/d.sock:\n",
        Refusal,
        "BindPaths",
        "docker.sock",
    );
    finds(
        "BindReadOnlyPaths=/run:/host-run:rbind\n",
        Refusal,
        "BindReadOnlyPaths",
        "/run",
    );
    let open = "OpenFile=/run/docker.sock:docker:\n";
    finds(open, Refusal, "OpenFile", "docker.sock");
    finds(
        "ReadWritePaths=/sys/fs/cgroup\n",
        Refusal,
        "ReadWritePaths",
        "undo",
    );
    let snap = "ExecStartEx={ path=/snap/bin/x ; argv[]=/snap/bin/x ; flags= ; start_time=[n/a] }\n";
    finds(snap, Refusal, "ExecStart", "snap");
}

#[test]
fn what_works_less_well_is_a_warning() {
    use Weight::Warning;
    finds("User=\n", Warning, "CapabilityBoundingSet", "CAP_NET_RAW");
    finds(
        "AmbientCapabilities=cap_net_raw\n",
        Warning,
        "AmbientCapabilities",
        "CAP_NET_RAW",
    );
    finds("RootDirectory=/srv/root\n", Warning, "RootDirectory", "root");
    finds(
        "NetworkNamespacePath=/run/netns/x\n",
        Warning,
        "NetworkNamespacePath",
        "namespace",
    );
    let plus = "ExecStartPreEx={ path=/bin/prepare ; argv[]=/bin/prepare ; flags=privileged ; pid=0 }\n";
    finds(plus, Warning, "ExecStartPre", "/bin/prepare");
    finds(
        "IPAddressDeny=::/0\n",
        Weight::Note,
        "IPAddressDeny",
        "this host's are allowed",
    );
}

#[test]
fn root_and_users_that_others_share_are_named() {
    let root = planned("Id=x\n", &setup());
    assert!(
        root.findings
            .iter()
            .any(|finding| finding.text.contains("runs as root"))
    );
    let shared = Setup {
        neighbours: vec![("mail.service".into(), "billing".into())],
        ..setup()
    };
    let plan = planned(PLAIN, &shared);
    assert!(
        plan.findings
            .iter()
            .any(|finding| finding.text.contains("mail.service"))
    );
    let dynamic = planned("DynamicUser=yes\nUser=billing\n", &shared);
    assert_eq!(dynamic.findings, []);
}

#[test]
fn a_slice_with_limits_is_not_left_unasked() {
    let name = WorkloadName::parse("billing").unwrap();
    let mut facts = Facts::read("billing.service", "User=u\nSlice=web.slice\n");
    assert!(!plan(&facts, &name, &setup()).is_refused());
    facts.slice_limits = vec!["MemoryMax=1024".into()];
    let refused = plan(&facts, &name, &setup());
    assert!(refused.is_refused() && refused.findings[0].text.contains("MemoryMax=1024"));
}

#[test]
fn drop_ins_that_are_read_later_and_undo_ours_are_found() {
    let name = WorkloadName::parse("billing").unwrap();
    let later = |text: &str| {
        let mut facts = Facts::read("billing.service", "User=u\n");
        facts.later = vec![DropIn {
            path: "/etc/systemd/system/billing.service.d/override.conf".into(),
            text: text.into(),
        }];
        plan(&facts, &name, &setup())
    };
    for undone in [
        "[Service]\n Slice = web.slice\n",
        "[Service]\nEnvironment=\n",
        "[Service]\nEnvironment=\"SSL_CERT_FILE=/x\"\n",
        "[Unit]\nAssertPathExists=\n",
        "[Service]\nInaccessiblePaths=\n",
        "[Service]\nSystemCallFilter=\n",
        "[Service]\nSystemCallFilter=@system-service\n",
    ] {
        assert!(later(undone).is_refused(), "{undone}");
    }
    for harmless in [
        "[Service]\n# Slice=x\nEnvironment=A=b\nMemoryMax=1G\nInaccessiblePaths=/x\nSystemCallFilter=~@clock\n",
        "",
    ] {
        assert_eq!(later(harmless).findings, [], "{harmless}");
    }
    assert!(DropIn::is_after_ours("/x/override.conf".as_ref()));
    assert!(!DropIn::is_after_ours("/x/10-a.conf".as_ref()));
    assert!(!DropIn::is_after_ours("/x/50-callgate.conf".as_ref()));
}
