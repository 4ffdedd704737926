//! What the doctor finds on a host where something is wrong, and that each finding names it.

use anyhow::{Context, Result};
use harness::{Output, World, require};
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
