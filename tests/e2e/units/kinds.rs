//! Services of all kinds: what each sets for itself, and what of it goes with being a workload.

use super::*;

/// Settings that a service may have for itself, each by a unit of its own that is enabled, started and calls.
const WORKING: &[(&str, &str)] = &[
    ("user", "User=nobody\n"),
    ("dynamic", "DynamicUser=yes\n"),
    (
        "strict",
        "User=nobody\nProtectSystem=strict\nProtectHome=yes\nPrivateTmp=yes\nPrivateDevices=yes\n",
    ),
    ("slice", "User=nobody\nSlice=web.slice\n"),
    ("denied", "User=nobody\nIPAddressDeny=any\n"),
    (
        "listed",
        "User=nobody\nSystemCallFilter=@system-service\nRestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_PACKET\nCapabilityBoundingSet=\n",
    ),
    ("root", ""),
];

#[test]
fn services_with_settings_of_their_own_are_captured_and_work() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    let unit = |name: &str| format!("billing-{name}.service");
    for (name, settings) in WORKING {
        let text = format!(
            "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart={}\n{settings}",
            call(&format!("/v1/{name}"))
        );
        bed.write(&format!("/etc/systemd/system/{}", unit(name)), &text)?;
    }
    bed.systemctl(&["daemon-reload"])?.ok()?;
    for (name, _) in WORKING {
        enable(&bed, &unit(name)).with_context(|| (*name).to_owned())?;
    }
    for (name, _) in WORKING {
        started(&bed, &unit(name)).with_context(|| (*name).to_owned())?;
        was_called(&bed, &unit(name), &format!("/v1/{name}")).with_context(|| (*name).to_owned())?;
    }
    Ok(())
}

#[test]
fn a_template_is_enabled_for_all_its_instances() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    let text = format!(
        "[Service]\nType=oneshot\nRemainAfterExit=yes\nUser=nobody\nExecStart={}\n",
        call("/v1/%i")
    );
    bed.unit("worker@.service", &text)?;
    enable(&bed, "worker@.service")?;
    for instance in ["1", "two"] {
        let unit = format!("worker@{instance}.service");
        started(&bed, &unit)?;
        was_called(&bed, &unit, &format!("/v1/{instance}"))?;
    }
    Ok(())
}

#[test]
fn a_service_that_fails_again_and_again_is_captured_each_time() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    let text = format!(
        "[Unit]\nStartLimitIntervalSec=0\n[Service]\nUser=nobody\nRestart=always\nRestartSec=100ms\nExecStart=/bin/sh -c '{}; kill -SEGV $$$$'\n",
        call("/v1/loop")
    );
    bed.unit("billing.service", &text)?;
    enable(&bed, "billing")?;
    bed.systemctl(&["start", "billing.service"])?.ok()?;
    let mut runs = std::collections::BTreeSet::new();
    wait::until("five runs on record", wait::PATIENCE, || {
        let records = bed.records().ok()?;
        let of_it = records.iter().filter(|one| one.text("path") == "/v1/loop");
        runs = of_it.map(|one| one.text("invocation")).collect();
        (runs.len() >= 5).then_some(())
    })
    .with_context(|| bed.journal("billing.service").unwrap_or_default())?;
    bed.systemctl(&["stop", "billing.service"])?.ok()?;
    let log = bed.world().server(API)?.log()?;
    let direct = log
        .iter()
        .filter(|one| one.authorization.is_empty() || one.authorization == "-");
    assert_eq!(direct.count(), 0, "a call went out directly");
    Ok(())
}

#[test]
fn what_cannot_be_held_is_refused_with_the_reason_and_nothing_is_written() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    bed.unit("limited.slice", "[Slice]\nMemoryMax=100M\n")?;
    let cases = [
        ("PrivateNetwork", "PrivateNetwork=yes\n", "no way out"),
        ("Delegate", "Delegate=yes\n", "cgroup tree"),
        ("Slice", "Slice=limited.slice\n", "MemoryMax=104857600"),
        (
            "BindPaths",
            "BindPaths=/run/docker.sock:/tmp/d.sock\n",
            "docker.sock",
        ),
        (
            "BusName",
            "Type=dbus\nBusName=org.example.Billing\n",
            "--leave-open",
        ),
    ];
    for (setting, text, reason) in cases {
        bed.unit(
            "billing.service",
            &format!("[Service]\nExecStart=/bin/true\n{text}"),
        )?;
        let done = bed.run(["callgate", "enable", "billing"])?;
        assert_eq!(done.code(), Some(1), "{setting}: {done:?}");
        let line = done
            .stdout
            .lines()
            .find(|line| line.starts_with(&format!("refused: {setting}: ")));
        assert!(
            line.is_some_and(|line| line.contains(reason)),
            "{setting}: {done:?}"
        );
        assert!(!bed.exists("/etc/systemd/system/billing.service.d")?);
    }
    Ok(())
}

#[test]
fn a_dry_run_changes_nothing_and_machines_can_read_it() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    service(&bed, "billing.service", "")?;
    let shown = bed.run(["callgate", "enable", "--dry-run", "billing"])?.ok()?;
    assert!(shown.contains("Slice=callgate-billing.slice"), "{shown}");
    assert!(shown.contains("warning: User: it runs as root"), "{shown}");
    assert!(!bed.exists("/etc/systemd/system/billing.service.d")?);
    let json = bed
        .run(["callgate", "enable", "--dry-run", "--json", "billing"])?
        .ok()?;
    let document: serde_json::Value = serde_json::from_str(&json)?;
    assert_eq!(document["ok"], true);
    assert_eq!(document["written"], false);
    assert_eq!(document["workload"], "billing");
    assert_eq!(document["findings"][0]["setting"], "User");

    let unknown = bed.run(["callgate", "enable", "nowhere"])?;
    assert_eq!(unknown.code(), Some(2), "{unknown:?}");
    let missing = bed.run(["callgate", "enable", "--workload", "billing", "nowhere"])?;
    assert_eq!(missing.code(), Some(2), "{missing:?}");
    assert!(missing.stderr.contains("not found"), "{missing:?}");
    Ok(())
}

#[test]
fn a_drop_in_that_is_read_later_and_undoes_ours_is_named() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    bed.write(
        "/etc/systemd/system/billing.service.d/override.conf",
        "[Service]\nSlice=web.slice\n",
    )?;
    service(&bed, "billing.service", "User=nobody\n")?;
    let done = bed.run(["callgate", "enable", "billing"])?;
    assert_eq!(done.code(), Some(1), "{done:?}");
    assert!(done.stdout.contains("override.conf is read after"), "{done:?}");
    Ok(())
}
