//! What a unit's own settings bring into its reach, past what the drop-in takes away.

use super::*;

/// Settings by which a unit would get round its drop-in, each with the words that refuse it.
const WAYS: &[(&str, &str, &str)] = &[
    ("BindPaths", "BindPaths=/sys/fs/cgroup:/mnt\n", "/sys/fs/cgroup"),
    ("BindPaths", "BindPaths=/:/mnt\n", "brings"),
    (
        "BindReadOnlyPaths",
        "BindReadOnlyPaths=/etc/callgate/secrets:/mnt\n",
        "secrets",
    ),
    ("BindPaths", "BindPaths=/etc/callgate:/mnt\n", "/etc/callgate"),
    (
        "ReadWritePaths",
        "ReadWritePaths=+/sys/fs/cgroup\n",
        "/sys/fs/cgroup",
    ),
    (
        "ReadWritePaths",
        "ReadWritePaths=/etc/systemd/system\n",
        "/etc/systemd",
    ),
    // What systemd opens, copies or makes over as root.
    (
        "LoadCredential",
        "LoadCredential=key:/etc/callgate/secrets/api\n",
        "LoadCredential=key:/etc/callgate/secrets/api",
    ),
    (
        "LoadCredentialEncrypted",
        "LoadCredentialEncrypted=mine:stripe\n",
        "/etc/credstore/stripe",
    ),
    (
        "StandardInput",
        "StandardInput=file:/etc/callgate/secrets/api\n",
        "/etc/callgate/secrets/api",
    ),
    (
        "StandardOutput",
        "StandardOutput=append:/var/log/callgate/audit.jsonl\n",
        "audit.jsonl",
    ),
    (
        "EnvironmentFile",
        "EnvironmentFile=-/etc/callgate/secrets/api\n",
        "/etc/callgate/secrets/api",
    ),
    ("StateDirectory", "StateDirectory=callgate\n", "/var/lib/callgate"),
    ("RuntimeDirectory", "RuntimeDirectory=callgate\n", "/run/callgate"),
    // Newer than this bed's systemd, which shows nothing of them: the unit's files tell.
    (
        "OpenFile",
        "OpenFile=/etc/callgate/secrets/api:key:read-only\n",
        "brings back what is taken from it (/etc/callgate/secrets)",
    ),
    ("OpenFile", "OpenFile=/run/docker.sock:docker\n", "docker.sock"),
    (
        "ImportCredential",
        "ImportCredential=str*\n",
        "gives it what is the agent's (stripe)",
    ),
    // Names with blanks are in quotes and escapes in files, and again where systemd shows them.
    (
        "StateDirectory",
        "StateDirectory=x \"call gate\"\n",
        SECRETS_OF_STATE,
    ),
    ("StateDirectory", "StateDirectory='call gate'\n", SECRETS_OF_STATE),
    (
        "StateDirectory",
        "StateDirectory=call\\x20gate\n",
        SECRETS_OF_STATE,
    ),
    (
        "StateDirectory",
        "StateDirectory=x \\\n# y\n \"call gate\"\n",
        SECRETS_OF_STATE,
    ),
];

/// A secret that lies where a unit's directory of its own may be.
const SECRETS_OF_STATE: &str = "/var/lib/call gate";
const ODD: &str = r#"
[credential.odd]
hosts  = ["odd.example.test:443"]
scheme = "bearer"
source = { file = "/var/lib/call gate/odd" }
"#;

#[test]
fn settings_that_bring_back_what_is_taken_away_are_refused() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    // A credential that the agent has from systemd is no other unit's either.
    bed.unit(
        "callgate.service.d/key.conf",
        "[Service]\nLoadCredential=stripe\n",
    )?;
    bed.sh(&format!(
        "umask 077; mkdir '{SECRETS_OF_STATE}'; printf x > '{SECRETS_OF_STATE}/odd'"
    ))?
    .ok()?;
    bed.policy(&format!("{POLICY}{ODD}"))?;
    for (number, (_, text, _)) in WAYS.iter().enumerate() {
        let unit = format!("/etc/systemd/system/billing-{number}.service");
        bed.write(&unit, &format!("[Service]\nExecStart=/bin/true\n{text}"))?;
    }
    bed.systemctl(&["daemon-reload"])?.ok()?;
    for (number, (setting, text, reason)) in WAYS.iter().enumerate() {
        let done = bed.run(["callgate", "enable", "--dry-run", &format!("billing-{number}")])?;
        assert_eq!(done.code(), Some(1), "{text}: {done:?}");
        let refused = format!("refused: {setting}: ");
        let line = done.stdout.lines().find(|line| line.starts_with(&refused));
        assert!(line.is_some_and(|line| line.contains(reason)), "{text}: {done:?}");
    }
    Ok(())
}

#[test]
fn credentials_of_its_own_reach_a_unit_that_is_held() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    bed.sh("umask 077; printf own-key >/etc/own-key")?.ok()?;
    let read = r#"ExecStartPre=/bin/sh -c 'echo "it read $(cat "$CREDENTIALS_DIRECTORY/own")"'"#;
    let own = format!("User=nobody\nLoadCredential=own:/etc/own-key\n{read}\n");
    service(&bed, "billing.service", &own)?;
    let said = enable(&bed, "billing")?;
    assert!(!said.contains("LoadCredential"), "{said}");
    let journal = started(&bed, "billing.service")?;
    assert!(journal.contains("it read own-key"), "{journal}");
    was_called(&bed, "billing.service", "/v1/billing.service")
}

#[test]
fn a_drop_in_with_a_blank_in_its_name_or_a_comment_in_another_encoding_is_looked_at() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    service(&bed, "billing.service", "User=nobody\nStateDirectory=\"my %n\"\n")?;
    let directory = "/etc/systemd/system/billing.service.d";
    let drop_in = &format!("{directory}/60 over.conf");
    // "Müller" in Latin-1.
    let text = r"# M\374ller\n[Service]\nSlice=web.slice\n";
    bed.sh(&format!("mkdir -p '{directory}'; printf '{text}' > '{drop_in}'"))?
        .ok()?;
    bed.systemctl(&["daemon-reload"])?.ok()?;
    let refused = bed.run(["callgate", "enable", "billing"])?;
    assert_eq!(refused.code(), Some(1), "{refused:?}");
    assert!(
        refused.stdout.contains("60 over.conf is read after"),
        "{refused:?}"
    );
    bed.run(["rm", drop_in])?.ok()?;
    bed.systemctl(&["daemon-reload"])?.ok()?;
    enable(&bed, "billing")?;
    bed.systemctl(&["start", "billing.service"])?.ok()?;
    assert!(bed.exists("/var/lib/my billing.service")?);
    Ok(())
}

#[test]
fn records_are_out_of_reach_of_a_unit_of_root_after_they_are_rotated_too() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    bed.unit(
        "billing.service",
        "[Service]\nExecStart=/bin/sh -c 'until [ -e /opt/rotated ]; do sleep 0.05; done; ls -A /var/log/callgate; echo looked; sleep 1000'\n",
    )?;
    enable(&bed, "billing")?;
    bed.systemctl(&["start", "billing.service"])?.ok()?;
    bed.sh("mv /var/log/callgate/audit.jsonl /var/log/callgate/audit.jsonl.1; echo {} >/var/log/callgate/audit.jsonl; touch /opt/rotated")?
        .ok()?;
    let said = wait::until("the unit looked", wait::PATIENCE, || {
        let said = bed.journal("billing.service").ok()?;
        said.contains("looked").then_some(said)
    })?;
    assert!(!said.contains("audit.jsonl"), "{said}");
    let exec = [
        "callgate",
        "exec",
        "--workload",
        "billing",
        "--",
        "ls",
        "-A",
        "/var/log/callgate",
    ];
    let seen = bed.run(exec)?;
    assert!(!seen.stdout.contains("audit.jsonl"), "{seen:?}");
    Ok(())
}

#[test]
fn another_name_of_a_unit_is_not_enabled_in_its_place() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    bed.run([
        "ln",
        "-s",
        "billing-real.service",
        "/etc/systemd/system/billing-alias.service",
    ])?
    .ok()?;
    service(&bed, "billing-real.service", "User=nobody\n")?;
    let done = bed.run(["callgate", "enable", "billing-alias"])?;
    assert_eq!(done.code(), Some(2), "{done:?}");
    assert!(done.stderr.contains("billing-real.service"), "{done:?}");
    assert!(!bed.exists("/etc/systemd/system/billing-alias.service.d")?);
    Ok(())
}

#[test]
fn a_unit_that_may_make_no_socket_gets_none_however_often_it_is_enabled() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    service(
        &bed,
        "billing.service",
        "User=nobody\nRestrictAddressFamilies=none\n",
    )?;
    for _ in 0..2 {
        enable(&bed, "billing")?;
        let drop_in = bed
            .run(["cat", "/etc/systemd/system/billing.service.d/50-callgate.conf"])?
            .ok()?;
        assert!(drop_in.contains("RestrictAddressFamilies=none\n"), "{drop_in}");
    }
    Ok(())
}

#[test]
fn who_shares_its_user_with_the_unit_is_named_whether_managed_or_not() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    bed.unit(
        "mail.service",
        "[Service]\nUser=nobody\nExecStart=/bin/sleep 1000\n",
    )?;
    bed.systemctl(&["start", "mail.service"])?.ok()?;
    service(&bed, "billing.service", "User=nobody\n")?;
    let said = enable(&bed, "billing")?;
    assert!(said.contains("warning: User: mail.service"), "{said}");
    Ok(())
}

#[test]
fn a_unit_that_runs_is_cut_off_at_once_and_the_operator_is_told() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    let call = call("/v1/before");
    bed.unit(
        "billing.service",
        &format!("[Service]\nUser=nobody\nExecStart=/bin/sh -c 'until [ -e /opt/enabled ]; do sleep 0.05; done; {call} --connect-timeout 2; echo came to $$?; sleep 1000'\n"),
    )?;
    bed.systemctl(&["start", "billing.service"])?.ok()?;
    let told = enable(&bed, "billing")?;
    assert!(
        told.contains("reaches nothing but this host from now on"),
        "{told}"
    );
    bed.run(["touch", "/opt/enabled"])?.ok()?;
    let said = came_to(&bed)?;
    assert!(!said.contains("came to 0"), "{said}");
    Ok(())
}

#[test]
fn the_doctor_tells_an_instance_that_is_another_workloads_from_one_that_runs_unheld() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    bed.policy(&format!(
        "{POLICY}\n[[workload]]\nname = \"other\"\nunits = [\"worker@2.service\"]\n"
    ))?;
    bed.unit(
        "worker@.service",
        "[Service]\nUser=nobody\nExecStart=/bin/sleep 1000\n",
    )?;
    bed.systemctl(&["start", "worker@3"])?.ok()?;
    for (unit, workload) in [("worker@.service", "billing"), ("worker@2.service", "other")] {
        bed.run(["callgate", "enable", "--workload", workload, unit])?
            .ok()?;
    }
    bed.systemctl(&["start", "worker@1", "worker@2"])?.ok()?;
    let doctor = bed.run(["callgate", "doctor"])?.stdout;
    let failed: Vec<_> = doctor.lines().filter(|line| line.starts_with("FAIL")).collect();
    assert_eq!(failed.len(), 1, "{doctor}");
    assert!(failed[0].contains("worker@3.service runs as it was"), "{doctor}");
    assert!(!failed[0].contains("worker@2"), "{doctor}");
    Ok(())
}

#[test]
fn what_enable_cannot_do_as_it_is_told_is_an_error_and_the_agents_own_user_is_warned_about() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    service(&bed, "billing.service", "User=callgate\n")?;
    let odd = bed.run(["callgate", "enable", "--leave-open", "/run/dbus", "billing"])?;
    assert_eq!(odd.code(), Some(2), "{odd:?}");
    assert!(odd.stderr.contains("/run/dbus/system_bus_socket"), "{odd:?}");
    let said = enable(&bed, "billing")?;
    assert!(said.contains("warning: User: callgate.service"), "{said}");
    Ok(())
}
