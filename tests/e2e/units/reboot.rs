//! Reboots: a unit that starts at boot is held if the agent is there, waits for one that is slow, and else does not start.

use harness::Record;

use super::*;

/// Longer than [`IMPATIENT`] lets the agent take, and far less than its own unit does.
const SLOW: &str = "[Service]\nExecStartPre=/bin/sleep 4\n";
/// What [`SLOW`] adds, in microseconds.
const SLOWNESS: u64 = 4_000_000;
const IMPATIENT: &str = "[Service]\nExecStartPre=/bin/sleep 4\nTimeoutStartSec=1s\n";
const DROP_IN: &str = "callgate.service.d/slow.conf";
const NOT_ARMED: &str = "AssertPathExists=/run/callgate/armed/billing was not met";

/// A host with a unit that calls the API when it is started, which is at boot, enabled as a workload.
fn at_boot() -> Result<Bed> {
    let bed = host()?;
    bed.unit(
        "billing.service",
        &format!(
            "[Service]\nUser=nobody\nType=oneshot\nRemainAfterExit=yes\nExecStart={}\n[Install]\nWantedBy=multi-user.target\n",
            call("/v1/boot")
        ),
    )?;
    bed.systemctl(&["enable", "billing.service"])?.ok()?;
    enable(&bed, "billing")?;
    Ok(bed)
}

/// How often the unit's call is on record; with nothing at the API that is not.
fn starts(bed: &Bed) -> Result<usize> {
    let records = bed.records()?;
    let of_unit = |record: &&Record| {
        record.text("kind") == "call"
            && record.text("unit") == "billing.service"
            && record.text("status") == "200"
            && record.text("credential.name") == "api"
    };
    let recorded = records.iter().filter(of_unit).count();
    let arrived = bed.world().server(API)?.log()?;
    assert_eq!(arrived.len(), recorded, "{arrived:?}, {records:?}");
    Ok(recorded)
}

fn has_started(bed: &Bed, times: usize) -> Result<()> {
    assert_eq!(bed.property("billing.service", "ActiveState")?, "active");
    wait::until("the unit's call on record", wait::PATIENCE, || {
        let recorded = bed.records().ok()?;
        let of_unit = |record: &&Record| record.text("unit") == "billing.service";
        (recorded.iter().filter(of_unit).count() >= times).then_some(())
    })?;
    assert_eq!(starts(bed)?, times);
    Ok(())
}

/// After a boot without a working agent: the unit was not started, and nothing was called. systemd's `status` of both
/// says why, and the agent's journal in more words.
fn did_not_start(bed: &Bed, times: usize, status: &str, why: &str) -> Result<()> {
    let unit = bed.systemctl(&["status", "billing.service"])?.stdout;
    assert!(unit.contains(NOT_ARMED), "{unit}");
    assert_eq!(bed.property("billing.service", "ActiveState")?, "inactive");
    assert_eq!(
        bed.property("billing.service", "ExecMainStartTimestampMonotonic")?,
        "0"
    );
    let mut journal = String::new();
    wait::until("the agent's fault told", wait::PATIENCE, || {
        let agent = bed.systemctl(&["status", "callgate.service"]).ok()?.stdout;
        journal = bed.journal("callgate.service").ok()?;
        (agent.contains(status) && journal.contains(why)).then_some(())
    })
    .with_context(|| journal)?;
    assert_eq!(starts(bed)?, times, "it ran without the agent");
    Ok(())
}

/// As an operator does who has mended the agent.
fn start_both(bed: &Bed) -> Result<()> {
    bed.systemctl(&["start", "callgate.service", "billing.service"])?
        .ok()?;
    Ok(())
}

#[test]
fn a_reboot_brings_agent_and_units_back_held_and_with_broken_settings_no_unit() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let mut bed = at_boot()?;
    let authority = std::fs::read(bed.path("/var/lib/callgate/ca.pem"))?;

    bed.reboot()?;
    has_started(&bed, 1)?;
    assert_eq!(bed.run(["callgate", "status"])?.code(), Some(0));
    assert_eq!(std::fs::read(bed.path("/var/lib/callgate/ca.pem"))?, authority);

    bed.write("/etc/callgate/callgate.toml", "threads = \"many\"\n")?;
    bed.reboot()?;
    did_not_start(&bed, 1, "status=2", "callgate.toml:1")?;

    bed.write("/etc/callgate/callgate.toml", "")?;
    start_both(&bed)?;
    has_started(&bed, 2)
}

#[test]
fn after_a_reboot_without_the_agent_s_binary_no_unit_starts_until_it_is_back() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let mut bed = at_boot()?;
    bed.run(["mv", "/usr/bin/callgate", "/usr/bin/callgate.away"])?
        .ok()?;
    bed.reboot()?;
    did_not_start(
        &bed,
        0,
        "status=203/EXEC",
        "Failed to locate executable /usr/bin/callgate",
    )?;

    bed.run(["mv", "/usr/bin/callgate.away", "/usr/bin/callgate"])?
        .ok()?;
    start_both(&bed)?;
    has_started(&bed, 1)
}

#[test]
fn at_a_reboot_a_unit_waits_for_a_slow_agent_and_does_not_start_without_one_that_is_too_slow() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let mut bed = at_boot()?;
    bed.unit(DROP_IN, SLOW)?;
    bed.reboot()?;
    has_started(&bed, 1)?;
    let time = |unit: &str, what: &str| -> Result<u64> {
        Ok(bed
            .property(unit, &format!("{what}TimestampMonotonic"))?
            .parse()?)
    };
    let (begun, ready) = (
        time("callgate.service", "InactiveExit")?,
        time("callgate.service", "ActiveEnter")?,
    );
    assert!(
        ready - begun > SLOWNESS,
        "the agent was not slow: {begun} to {ready}"
    );
    let unit = time("billing.service", "ExecMainStart")?;
    assert!(
        unit > ready,
        "the unit began at {unit}, the agent was ready at {ready}"
    );

    bed.unit(DROP_IN, IMPATIENT)?;
    bed.reboot()?;
    did_not_start(&bed, 1, "Result: timeout", "start-pre operation timed out")?;

    bed.run(["rm", &format!("/etc/systemd/system/{DROP_IN}")])?.ok()?;
    bed.systemctl(&["daemon-reload"])?.ok()?;
    start_both(&bed)?;
    has_started(&bed, 2)
}
