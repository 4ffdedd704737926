//! The same on a host that has cgroups of version 1 beside those of version 2.

use std::time::Duration;

use super::activated::{ask, led, listen, server};
use super::*;

/// The agent looks for handed sockets twice a second.
const LOOK: Duration = Duration::from_secs(2);

fn hybrid_host() -> Result<Bed> {
    let mut world = World::new()?;
    world.upstream(Upstream::new(API).bearer("s3cret", "acme"))?;
    let bed = Bed::hybrid(world)?;
    bed.secret("api", "s3cret")?;
    bed.policy(POLICY)
        .with_context(|| bed.journal("callgate.service").unwrap_or_default())?;
    Ok(bed)
}

#[test]
fn units_are_captured_named_and_held_on_a_hybrid_layout_and_the_package_leaves_nothing() -> Result<()> {
    require!(Root, CgroupV2, HybridCgroups, Btf, Bed);
    let bed = hybrid_host()?;
    let mounts = bed
        .sh("findmnt --noheadings --output TARGET --types cgroup,cgroup2")?
        .ok()?;
    assert!(mounts.contains("/sys/fs/cgroup/unified"), "{mounts}");
    assert!(mounts.contains("/sys/fs/cgroup/systemd"), "{mounts}");
    service(&bed, "billing.service", "User=nobody\n")?;
    enable(&bed, "billing")?;
    bed.systemctl(&["start", "billing.service"])?
        .ok()
        .with_context(|| bed.journal("billing.service").unwrap_or_default())?;
    let record = assert_record!(bed, "unit" = "billing.service", "status" = 200);
    let cgroup = record.text("cgroup.path");
    assert_eq!(cgroup, "/callgate.slice/callgate-billing.slice/billing.service");
    let doctor = bed.run(["callgate", "doctor"])?;
    assert!(
        doctor.stdout.contains("hybrid, v1 controllers beside it"),
        "{doctor:?}"
    );
    assert_ne!(doctor.code(), Some(3), "{doctor:?}");

    bed.systemctl(&["restart", "callgate.service"])?.ok()?;
    bed.systemctl(&["restart", "billing.service"])?.ok()?;
    bed.systemctl(&["stop", "callgate.service"])?.ok()?;
    bed.unit(
        "callgate.service.d/no.conf",
        "[Service]\nExecStartPre=/bin/false\nRestart=no\n",
    )?;
    let direct = bed.run([
        "systemd-run",
        "--quiet",
        "--wait",
        "--pipe",
        "--slice=callgate-billing.slice",
        "curl",
        "-sSk",
        "-m",
        "5",
        &format!("https://{API}/direct"),
    ])?;
    assert_ne!(
        direct.code(),
        Some(0),
        "without an agent something got out: {direct:?}"
    );

    bed.systemctl(&["stop", "billing.service"])?.ok()?;
    bed.run(["dpkg", "--purge", "callgate"])?.ok()?;
    let left = bed.sh("find /sys/fs/cgroup /sys/fs/bpf -name '*callgate*'")?;
    assert_eq!(left.stdout, "");
    Ok(())
}

#[test]
fn a_service_started_by_a_socket_serves_and_calls_and_its_sockets_are_kept_from_leading_elsewhere()
-> Result<()> {
    require!(Root, CgroupV2, HybridCgroups, Btf, Bed);
    let bed = hybrid_host()?;
    listen(&bed)?;
    bed.unit("billing.socket", "[Socket]\nListenStream=8080\n")?;
    server(&bed, "billing.service", "")?;
    let said = enable(&bed, "billing")?;
    assert!(said.contains("outside of the workload"), "{said}");
    bed.systemctl(&["start", "billing.socket"])?.ok()?;
    for _ in 0..2 {
        let answer = ask(&bed, 8080, "call")?;
        assert_eq!(answer, "200", "{:?}", bed.journal("billing.service"));
    }
    std::thread::sleep(LOOK);
    led(&bed, "billing.service")?;
    Ok(())
}
