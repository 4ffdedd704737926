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
];

#[test]
fn settings_that_bring_back_what_is_taken_away_are_refused() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    // A credential that the agent has from systemd is no other unit's either.
    bed.unit(
        "callgate.service.d/key.conf",
        "[Service]\nLoadCredential=stripe\n",
    )?;
    for (setting, text, reason) in WAYS {
        bed.unit(
            "billing.service",
            &format!("[Service]\nExecStart=/bin/true\n{text}"),
        )?;
        let done = bed.run(["callgate", "enable", "billing"])?;
        assert_eq!(done.code(), Some(1), "{text}: {done:?}");
        let refused = format!("refused: {setting}: ");
        let line = done.stdout.lines().find(|line| line.starts_with(&refused));
        assert!(line.is_some_and(|line| line.contains(reason)), "{text}: {done:?}");
    }
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
