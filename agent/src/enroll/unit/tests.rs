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
fn clone3_is_taken_away_in_so_many_words() {
    // RestrictNamespaces does so too, from systemd 251 on.
    assert!(planned(PLAIN, &setup()).drop_in.contains(" clone3:ENOSYS "));
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
    let bang = "ExecStartPreEx={ path=/bin/prepare ; argv[]=/bin/prepare ; flags=no-setuid ; pid=0 }\n";
    finds(bang, Warning, "ExecStartPre", "runs as root, not as billing");
    finds(
        "IPAddressDeny=::/0\n",
        Weight::Note,
        "IPAddressDeny",
        "this host's are allowed",
    );
}

#[test]
fn commands_with_full_privileges_are_refused_unless_the_operator_accepts_them() {
    let plus = "ExecStartPreEx={ path=/bin/prepare ; argv[]=/bin/prepare ; flags=ignore-failure privileged ; pid=0 }\n";
    finds(plus, Weight::Refusal, "ExecStartPre", "--allow-privileged");
    let accepting = Setup {
        allow_privileged: true,
        ..setup()
    };
    let plan = planned(&format!("{PLAIN}{plus}"), &accepting);
    assert!(!plan.is_refused(), "{:?}", plan.findings);
    assert!(
        plan.findings
            .iter()
            .any(|found| found.text.contains("/bin/prepare")),
        "{:?}",
        plan.findings
    );
    assert!(accepts_privileged(&plan.drop_in));
    assert!(!accepts_privileged(&planned(PLAIN, &setup()).drop_in));
    let start_only = written("PermissionsStartOnly=yes\n");
    assert!(
        start_only
            .iter()
            .any(|text| text.contains("all commands but ExecStart="))
    );
}

/// What is refused of a unit whose file says this.
fn written(lines: &str) -> Vec<String> {
    let mut facts = Facts::read("billing.service", PLAIN);
    let path = "/etc/systemd/system/billing.service".into();
    facts.files = vec![DropIn::new(path, &format!("[Service]\n{lines}"))];
    let setup = Setup {
        own: [
            "/var/lib/callgate",
            "/run/callgate",
            "/etc/callgate",
            "/srv/keys/api",
        ]
        .map(PathBuf::from)
        .to_vec(),
        credentials: vec!["stripe".to_owned(), "/srv/sealed".to_owned()],
        ..setup()
    };
    let plan = plan(&facts, &WorkloadName::parse("billing").unwrap(), &setup);
    let refused = plan
        .findings
        .into_iter()
        .filter(|found| found.weight == Weight::Refusal);
    refused.map(|found| found.text).collect()
}

#[test]
fn what_systemd_would_open_for_it_of_the_agents_is_refused_with_the_line() {
    for line in [
        "LoadCredential=key:/etc/callgate/secrets/api",
        "LoadCredential=all:/srv/keys",
        "LoadCredential=stripe",
        "LoadCredentialEncrypted=mine:/etc/credstore.encrypted/stripe",
        "LoadCredentialEncrypted=mine:/srv/sealed",
        "LoadCredential=state:%S/callgate/ca.key",
        "StandardInput=file:/srv/keys/api",
        "StandardOutput=append:/var/lib/callgate/log",
        "StandardError=truncate:/var/run/callgate/x",
    ] {
        let refused = written(&format!("{line}\n"));
        assert!(
            refused.len() == 1 && refused[0].contains(line),
            "{line}: {refused:?}"
        );
    }
    for harmless in [
        "LoadCredential=key:/etc/billing/key",
        "LoadCredential=key:/run/callgate/trust/ca-bundle.pem",
        "LoadCredential=other",
        "LoadCredential=stripe\nLoadCredential=",
        "SetCredential=stripe:value",
        "StandardInput=file:/srv/input\nStandardOutput=journal",
        "# LoadCredential=stripe",
    ] {
        assert_eq!(written(&format!("{harmless}\n")), [] as [&str; 0], "{harmless}");
    }
    assert_eq!(
        written("LoadCredential=\\\nkey:/srv/keys/api\n").len(),
        1,
        "a line that goes on"
    );
}

#[test]
fn files_and_directories_that_systemd_shows_are_looked_at_too() {
    let owning = Setup {
        own: vec![
            "/var/lib/callgate".into(),
            "/etc/callgate".into(),
            "/var/log/callgate/audit.jsonl".into(),
        ],
        ..setup()
    };
    for (shown, setting) in [
        (
            "EnvironmentFiles=/etc/callgate/callgate.toml (ignore_errors=yes)",
            "EnvironmentFile",
        ),
        ("StateDirectory=billing callgate", "StateDirectory"),
        ("StateDirectory=billing \"callgate/my x\"", "StateDirectory"),
        ("LogsDirectory=callgate", "LogsDirectory"),
        (
            "ConfigurationDirectory=callgate/policy.d",
            "ConfigurationDirectory",
        ),
    ] {
        let plan = planned(&format!("{PLAIN}{shown}\n"), &owning);
        let found = &plan.findings[0];
        assert_eq!(
            (found.weight, found.setting),
            (Weight::Refusal, setting),
            "{found:?}"
        );
    }
    let other = "StateDirectory=billing\nEnvironmentFiles=/etc/default/billing (ignore_errors=no)\n";
    assert!(!planned(&format!("{PLAIN}{other}"), &owning).is_refused());
}

#[test]
fn every_warning_says_what_to_do() {
    let shown = "Id=x\nRootDirectory=/srv\nNetworkNamespacePath=/run/netns/x\nAmbientCapabilities=cap_net_raw\nCapabilityBoundingSet=cap_net_raw\n";
    let setup = Setup {
        left_open: vec!["/run/docker.sock".into()],
        neighbours: vec![("mail.service".into(), "root".into())],
        bundled: vec!["/usr/bin/x".into()],
        ..setup()
    };
    let plan = planned(shown, &setup);
    let warnings = plan
        .findings
        .iter()
        .filter(|found| found.weight == Weight::Warning);
    assert_eq!(warnings.clone().count(), 8, "{:#?}", plan.findings);
    for warning in warnings {
        assert!(!warning.fix.is_empty(), "{warning:?}");
    }
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
    let hidden = planned("User=u\nDropInPaths=/x/10-a.conf [unprintable]\n", &setup());
    assert!(hidden.is_refused(), "{:?}", hidden.findings);
    assert!(DropIn::is_after_ours("/x/override.conf".as_ref()));
    assert!(!DropIn::is_after_ours("/x/10-a.conf".as_ref()));
    assert!(!DropIn::is_after_ours("/x/50-callgate.conf".as_ref()));
}

#[test]
fn what_is_the_agents_is_found_behind_links_quotes_and_escapes() {
    let setup = Setup {
        hidden: vec!["/etc/call gate/secrets".into(), "/var/lib/callgate".into()],
        own: vec![
            "/etc/call gate/secrets".into(),
            "/var/lib/callgate".into(),
            "/var/lib/call gate".into(),
        ],
        credentials: vec!["stripe".into()],
        fixed: vec!["/etc/call gate".into()],
        links: vec![
            ("/srv/state".into(), "/var/lib/callgate".into()),
            ("/srv/docker".into(), "/run/docker.sock".into()),
            ("/var/lib/callgate".into(), "/data/callgate".into()),
        ],
        ..setup()
    };
    let of = |line: &str| {
        let mut facts = Facts::read("billing.service", PLAIN);
        let text = format!("[Service]\n{line}\n");
        facts.files = vec![DropIn::new("/etc/systemd/system/billing.service".into(), &text)];
        plan(&facts, &WorkloadName::parse("billing").unwrap(), &setup)
    };
    for refused in [
        r#"BindPaths="/etc/call gate/secrets":/x"#,
        r"BindReadOnlyPaths=/srv/own -/etc/call\ gate/secrets:/x:rbind",
        r"BindPaths=/etc/call\x20gate:/x",
        "BindReadOnlyPaths=/srv/state:/x",
        "BindPaths=/data:/x",
        "BindPaths=/srv/docker",
        "ReadWritePaths='/etc/call gate/policy.d'",
        "StandardInput=file:/srv/state",
        "LoadCredential=key:/data/callgate/ca.pem",
        r#"StateDirectory=billing "call gate""#,
        r"StateDirectory='call gate/x':y",
        r"StateDirectory=call\x20gate",
        "OpenFile=/etc/call gate/secrets/api:key",
        "ImportCredential=str*",
        // What the specifier means is not in its files.
        r#"BindPaths="/srv/%j x""#,
    ] {
        assert!(of(refused).is_refused(), "{refused}");
    }
    for harmless in [
        "BindPaths=/srv/other:/etc/call",
        "BindPaths=/etc/call gate.d",
        "StandardInput=file:/srv/input",
        "StateDirectory=call gate",
        r#"StateDirectory="call  gate""#,
        "ImportCredential=billing.*",
    ] {
        let plan = of(harmless);
        assert!(!plan.is_refused(), "{harmless}: {:?}", plan.findings);
    }
}
