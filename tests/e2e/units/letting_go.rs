//! The way back: a unit that is disabled, and a workload that is let go.

use super::*;

const FILES: &str =
    "cd /etc/systemd/system && find . -name 'billing*' -exec ls -ld {} + ; systemctl cat billing.service";

#[test]
fn a_disabled_unit_is_what_it_was_before() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    service(&bed, "billing.service", "User=nobody\n")?;
    let before = bed.sh(FILES)?.ok()?;
    enable(&bed, "billing")?;
    started(&bed, "billing.service")?;
    let said = bed.run(["callgate", "disable", "billing"])?.ok()?;
    assert!(said.contains("systemctl try-restart billing.service"), "{said}");
    assert_eq!(bed.sh(FILES)?.ok()?, before);
    bed.systemctl(&["restart", "billing.service"])?.ok()?;
    assert_eq!(bed.property("billing.service", "Slice")?, "system.slice");
    // Nobody puts the token on for it now.
    let journal = bed.journal("billing.service")?;
    assert!(journal.contains("401"), "{journal}");
    let again = bed.run(["callgate", "disable", "billing"])?;
    assert_eq!(again.code(), Some(1), "{again:?}");
    Ok(())
}

#[test]
fn a_workload_is_let_go_when_the_policy_has_it_no_more_and_nobody_runs_in_it() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    idle(&bed)?;
    let refused = |reason: &str| -> Result<()> {
        let done = bed.run(["callgate", "release", "billing"])?;
        assert_eq!(done.code(), Some(1), "{done:?}");
        assert!(done.stderr.contains(reason), "{done:?}");
        assert!(bed.exists("/run/callgate/armed/billing")?);
        Ok(())
    };
    refused("the policy still has the workload billing")?;
    bed.policy("")?;
    refused("processes run in billing")?;
    bed.systemctl(&["stop", "billing.service"])?.ok()?;
    let said = bed.run(["callgate", "release", "billing"])?.ok()?;
    assert!(said.contains("billing.service"), "{said}");
    let left = bed.sh(
        "find /sys/fs/cgroup/callgate.slice /run/callgate/armed /sys/fs/bpf/callgate -name '*billing*'",
    )?;
    assert_eq!(left.stdout, "");
    wait::until("systemd keeps no listener of it", wait::PATIENCE, || {
        let kept = bed.property("callgate.service", "NFileDescriptorStore").ok()?;
        // The directory of the pins.
        (kept == "1").then_some(())
    })?;
    let start = bed.systemctl(&["start", "billing.service"])?;
    assert!(
        !start.status.success(),
        "a unit of a workload that is not held started"
    );
    let unknown = bed.run(["callgate", "release", "billing"])?;
    assert_eq!(unknown.code(), Some(1), "{unknown:?}");

    // And back.
    bed.policy(POLICY)?;
    service(&bed, "billing-again.service", "User=nobody\n")?;
    enable(&bed, "billing-again")?;
    started(&bed, "billing-again.service")?;
    was_called(&bed, "billing-again.service", "/v1/billing-again.service")
}

#[test]
fn processes_of_a_workload_that_is_let_go_run_on_like_any_other_when_told() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    idle(&bed)?;
    bed.policy("")?;
    let said = bed.run(["callgate", "release", "--running", "billing"])?.ok()?;
    assert!(said.contains("run on"), "{said}");
    assert_eq!(bed.property("billing.service", "ActiveState")?, "active");
    assert!(!bed.exists("/run/callgate/armed/billing")?);
    Ok(())
}

#[test]
fn the_package_goes_although_a_managed_unit_starts_again_and_again() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    bed.unit(
        "billing.service",
        "[Unit]\nStartLimitIntervalSec=0\n[Service]\nUser=nobody\nExecStart=/bin/true\n",
    )?;
    enable(&bed, "billing")?;
    let again = "while sleep 0.02; do systemctl start --no-block billing; done";
    bed.run(["systemd-run", "sh", "-c", again])?.ok()?;
    let purged = bed.run(["dpkg", "--purge", "callgate"])?;
    assert_eq!(purged.code(), Some(0), "{purged:?}");
    assert!(!bed.exists("/sys/fs/bpf/callgate")?);
    assert_eq!(bed.property("callgate.service", "LoadState")?, "not-found");
    Ok(())
}

#[test]
fn the_package_goes_although_its_settings_are_broken() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    idle(&bed)?;
    bed.write("/etc/callgate/callgate.toml", "this is [no TOML\n")?;
    let purged = bed.run(["dpkg", "--purge", "callgate"])?;
    assert_eq!(purged.code(), Some(0), "{purged:?}");
    assert!(
        purged.stderr.contains("going on with what can be read"),
        "{purged:?}"
    );
    let places = "/etc/callgate /run/callgate /var/lib/callgate /sys/fs/bpf/callgate /etc/systemd/system";
    let left = bed.sh(&format!("find {places} -name '*callgate*'"))?;
    assert_eq!(left.stdout, "");
    let known = bed.run(["dpkg-query", "--show", "callgate"])?;
    assert!(!known.status.success(), "{known:?}");
    Ok(())
}

#[test]
fn a_package_that_never_ran_can_be_removed_where_nothing_could_run() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = Bed::boot(World::new()?)?;
    let package = bed::package()?;
    std::fs::copy(&package, bed.path("/var/cache/callgate.deb"))?;
    // Neither the kernel's file systems nor systemd, as where an image is built.
    let apart = r#"unshare --mount sh -ec 'umount -l /run; umount -l /sys
        exec setpriv --bounding-set=-bpf,-perfmon,-sys_admin,-net_admin,-sys_ptrace \
            sh -ec "dpkg -i /var/cache/callgate.deb; dpkg --purge callgate"'"#;
    let done = bed.sh(apart)?;
    assert_eq!(done.code(), Some(0), "{done:?}");
    assert!(!bed.exists("/usr/bin/callgate")?);
    Ok(())
}

#[test]
fn no_slice_stays_of_units_that_have_ended_and_one_in_use_is_named_when_the_package_goes() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    idle(&bed)?;
    bed.systemctl(&["stop", "billing.service"])?.ok()?;
    bed.run(["dpkg", "--remove", "callgate"])?.ok()?;
    assert_eq!(slices(&bed)?, "");

    bed.install(&bed::package()?)?;
    idle(&bed)?;
    let removed = bed.run(["dpkg", "--remove", "callgate"])?.ok()?;
    let fix = "systemctl try-restart billing.service";
    let rest = "systemctl stop callgate-billing.slice";
    for told in [fix, rest] {
        assert!(removed.contains(told), "{removed}");
    }
    assert_eq!(bed.property("billing.service", "ActiveState")?, "active");
    bed.sh(&format!("{fix}; {rest} callgate.slice"))?.ok()?;
    assert_eq!(bed.property("billing.service", "ActiveState")?, "active");
    assert_eq!(slices(&bed)?, "");
    assert_eq!(
        bed.sh("find /sys/fs/cgroup -name '*callgate*'")?.stdout,
        "",
        "a cgroup stays"
    );
    Ok(())
}
