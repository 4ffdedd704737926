//! What the doctor finds on a host where something is wrong, and that each finding names it.

mod clock;
mod running;

use anyhow::{Context, Result};
use harness::{Bed, Output, World, require};
use serde_json::Value;

/// The check of this name in the doctor's JSON.
fn check(output: &Output, name: &str) -> Result<Value> {
    let document: Value = serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))?;
    let checks = document["checks"].as_array().context("no checks")?;
    let found = checks.iter().find(|check| check["name"] == name);
    found
        .cloned()
        .with_context(|| format!("no check {name:?}: {document}"))
}

#[test]
fn what_the_settings_name_is_looked_at_and_each_fault_comes_with_its_place() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = World::new()?;
    world.policy("good.toml", "[[workload]]\nname = \"billing\"\n")?;
    // A port of a listener that never reads stands for a resolver that is down.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0")?;
    world.settings(&format!("resolvers = [\"{}\"]", silent.local_addr()?));
    world.write_config()?;
    let output = world.callgate("doctor", &["--json"])?;
    assert_eq!(output.code(), Some(1), "{output:?}");
    assert_eq!(check(&output, "policy")?["status"], "pass");
    assert_eq!(check(&output, "worker user")?["status"], "pass");
    assert_eq!(check(&output, "room for records")?["status"], "pass");
    assert_eq!(check(&output, "other programs")?["status"], "pass");
    let resolvers = check(&output, "resolvers")?;
    assert_eq!(resolvers["status"], "warn");
    let found = resolvers["found"].as_str().context("text")?;
    assert!(found.contains(&silent.local_addr()?.to_string()), "{found}");

    world.policy("bad.toml", "[[workload]]\nname = 7\n")?;
    let output = world.callgate("doctor", &["--json"])?;
    assert_eq!(output.code(), Some(3), "{output:?}");
    let policy = check(&output, "policy")?;
    assert_eq!(
        (&policy["status"], policy["fix"].as_str()),
        (&"fail".into(), Some("`callgate check` shows each with its line"))
    );
    Ok(())
}

#[test]
fn a_disk_that_is_almost_full_is_said_before_calls_are_refused() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = World::new()?;
    world.small_audit_disk(8 << 20)?;
    world.write_config()?;
    let output = world.callgate("doctor", &["--json"])?;
    let room = check(&output, "room for records")?;
    assert_eq!(room["status"], "warn", "{room}");
    Ok(())
}

#[test]
fn each_enabled_unit_is_looked_at_and_what_goes_past_the_agent_fails() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = Bed::installed(World::new()?)?;
    bed.policy("[[workload]]\nname = \"billing\"\nunits = [\"billing.service\"]\n")?;
    bed.unit("billing.service", "[Service]\nUser=nobody\nExecStart=sleep 600\n")?;
    let looked = |name: &str| -> Result<Value> { check(&bed.run(["callgate", "doctor", "--json"])?, name) };
    assert_eq!(looked("units")?["found"], "none is enabled");
    assert_eq!(looked("roots to trust")?["status"], "pass");

    bed.systemctl(&["start", "billing"])?.ok()?;
    bed.run(["callgate", "enable", "billing"])?.ok()?;
    let old = looked("unit")?;
    assert_eq!(old["status"], "fail", "{old}");
    assert!(
        old["found"]
            .as_str()
            .is_some_and(|found| found.contains("runs as it was before")),
        "{old}"
    );
    assert_eq!(old["fix"], "systemctl restart billing.service");
    bed.systemctl(&["restart", "billing"])?.ok()?;
    let held = looked("unit")?;
    assert_eq!(
        (&held["status"], &held["found"]),
        (
            &"pass".into(),
            &"billing.service is held as a part of billing".into()
        )
    );

    // Somebody undoes what holds it.
    bed.write(
        "/etc/systemd/system/billing.service.d/90-own.conf",
        "[Service]\nNoNewPrivileges=no\n",
    )?;
    bed.systemctl(&["daemon-reload"])?.ok()?;
    let undone = looked("unit")?;
    assert_eq!(undone["status"], "fail", "{undone}");
    assert!(
        undone["found"]
            .as_str()
            .is_some_and(|found| found.contains("90-own.conf")),
        "{undone}"
    );
    bed.run(["rm", "/etc/systemd/system/billing.service.d/90-own.conf"])?
        .ok()?;
    bed.systemctl(&["daemon-reload"])?.ok()?;

    let trust = looked("trust")?;
    assert_eq!(
        (&trust["status"], &trust["found"]),
        (
            &"pass".into(),
            &"billing: its processes trust the agent's root (1 find it among the host's, 0 by a variable)"
                .into()
        )
    );
    assert_eq!(looked("sockets")?["status"], "pass");

    // The policy forgets the workload: it is held, and may do nothing.
    bed.policy("")?;
    let forgotten = looked("unit")?;
    assert_eq!(forgotten["status"], "warn", "{forgotten}");
    assert!(
        forgotten["found"]
            .as_str()
            .is_some_and(|found| found.contains("no workload billing")),
        "{forgotten}"
    );
    Ok(())
}
