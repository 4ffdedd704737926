//! The agent and its units at start: no unit without the agent, and no unit that ends with it.

use super::*;

/// Makes a unit that stays, that starts at boot, and that is enabled as a workload.
fn long_running(bed: &Bed) -> Result<()> {
    bed.unit(
        "billing.service",
        "[Service]\nUser=nobody\nExecStart=/bin/sleep 1000\n[Install]\nWantedBy=multi-user.target\n",
    )?;
    bed.systemctl(&["enable", "billing.service"])?.ok()?;
    enable(bed, "billing")?;
    Ok(())
}

#[test]
fn a_restart_of_the_agent_leaves_its_units_running_and_held() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    long_running(&bed)?;
    bed.systemctl(&["start", "billing.service"])?.ok()?;
    let before = bed.property("billing.service", "InvocationID")?;
    bed.systemctl(&["restart", "callgate.service"])?.ok()?;
    bed.systemctl(&["daemon-reload"])?.ok()?;
    bed.systemctl(&["daemon-reexec"])?.ok()?;
    assert_eq!(bed.property("billing.service", "ActiveState")?, "active");
    assert_eq!(bed.property("billing.service", "InvocationID")?, before);
    service(&bed, "billing-after.service", "User=nobody\n")?;
    enable(&bed, "billing-after")?;
    started(&bed, "billing-after.service")?;
    was_called(&bed, "billing-after.service", "/v1/billing-after.service")
}

#[test]
fn an_empty_slice_stays_the_same_cgroup_over_all_that_systemd_does() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    let inode = || {
        bed.run([
            "stat",
            "-c%i",
            "/sys/fs/cgroup/callgate.slice/callgate-billing.slice",
        ])?
        .ok()
    };
    let before = inode()?;
    service(&bed, "billing.service", "User=nobody\n")?;
    enable(&bed, "billing")?;
    started(&bed, "billing.service")?;
    for verb in ["restart", "stop", "start", "stop"] {
        bed.systemctl(&[verb, "billing.service"])?.ok()?;
        assert_eq!(inode()?, before, "{verb}");
    }
    for verb in ["daemon-reload", "daemon-reexec"] {
        bed.systemctl(&[verb])?.ok()?;
        assert_eq!(inode()?, before, "{verb}");
    }
    Ok(())
}

#[test]
fn a_slice_cannot_be_stopped_by_hand_since_its_cgroup_would_go() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    service(&bed, "billing.service", "User=nobody\n")?;
    enable(&bed, "billing")?;
    started(&bed, "billing.service")?;
    bed.systemctl(&["stop", "billing.service"])?.ok()?;
    for slice in ["callgate-billing.slice", "callgate.slice"] {
        let stopped = bed.systemctl(&["stop", slice])?;
        assert!(
            stopped.stderr.contains("may be requested by dependency only"),
            "{stopped:?}"
        );
    }
    started(&bed, "billing.service")?;
    let invocation = bed.property("billing.service", "InvocationID")?;
    assert_record!(bed, "kind" = "call", "invocation" = invocation, "status" = 200);
    Ok(())
}

#[test]
fn no_unit_starts_while_the_agent_is_missing_or_its_settings_are_broken_and_it_says_why() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    long_running(&bed)?;
    // As after a boot: nothing is armed yet.
    bed.systemctl(&["stop", "callgate.service"])?.ok()?;
    bed.run(["rm", "-r", "/run/callgate", "/sys/fs/bpf/callgate"])?
        .ok()?;
    bed.write("/etc/callgate/callgate.toml", "threads = \"many\"\n")?;
    let broken = bed.systemctl(&["start", "billing.service"])?;
    assert!(!broken.status.success(), "{broken:?}");
    assert_ne!(bed.property("billing.service", "ActiveState")?, "active");
    assert!(broken.stderr.contains("Assertion failed"), "{broken:?}");
    let status = bed.systemctl(&["status", "billing.service"])?.stdout;
    assert!(
        status.contains("AssertPathExists=/run/callgate/armed/billing was not met"),
        "{status}"
    );

    bed.run(["mv", "/usr/bin/callgate", "/usr/bin/callgate.away"])?
        .ok()?;
    bed.systemctl(&["reset-failed"])?.ok()?;
    let missing = bed.systemctl(&["start", "billing.service"])?;
    assert!(!missing.status.success(), "{missing:?}");
    assert_ne!(bed.property("billing.service", "ActiveState")?, "active");
    assert!(missing.stderr.contains("Assertion failed"), "{missing:?}");
    let agent = bed.journal("callgate.service")?;
    assert!(
        agent.contains("Failed to locate executable /usr/bin/callgate"),
        "{agent}"
    );
    Ok(())
}

#[test]
fn a_unit_waits_for_an_agent_that_is_slow_to_start() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    service(&bed, "billing.service", "User=nobody\n")?;
    enable(&bed, "billing")?;
    bed.systemctl(&["stop", "callgate.service"])?.ok()?;
    bed.run(["rm", "-r", "/run/callgate", "/sys/fs/bpf/callgate"])?
        .ok()?;
    bed.unit(
        "callgate.service.d/slow.conf",
        "[Service]\nExecStartPre=/bin/sleep 2\n",
    )?;
    // Its job begins while the agent's is under way.
    bed.systemctl(&["start", "--no-block", "callgate.service"])?
        .ok()?;
    started(&bed, "billing.service")?;
    was_called(&bed, "billing.service", "/v1/billing.service")
}

#[test]
fn an_agent_that_is_stuck_is_started_anew() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    bed.unit("callgate.service.d/watchdog.conf", "[Service]\nWatchdogSec=2s\n")?;
    bed.systemctl(&["restart", "callgate.service"])?.ok()?;
    let first = bed.property("callgate.service", "MainPID")?;
    bed.run(["kill", "-STOP", &first])?.ok()?;
    wait::until("another agent runs", wait::PATIENCE, || {
        let pid = bed.property("callgate.service", "MainPID").ok()?;
        let state = bed.property("callgate.service", "ActiveState").ok()?;
        (pid != first && pid != "0" && state == "active").then_some(())
    })
    .with_context(|| bed.journal("callgate.service").unwrap_or_default())?;
    Ok(())
}
