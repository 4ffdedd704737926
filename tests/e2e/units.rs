//! systemd services that are enabled as workloads, on a booted Debian.

mod activated;
mod boot;
mod brought;
mod confined;
mod from_before;
mod hybrid;
mod kinds;
mod letting_go;
mod privileged;
mod reboot;
mod trust;

pub(crate) use confined::prepare_ways_out;

use anyhow::{Context, Result};
use harness::{Bed, Upstream, World, assert_record, bed, require, wait};

const API: &str = "api.example.test";

const POLICY: &str = r#"
[[workload]]
name = "billing"
units = ["billing*.service", "worker@*.service"]

  [[workload.allow]]
  name       = "charges"
  host       = "api.example.test"
  credential = "api"
  private    = true

[credential.api]
hosts  = ["api.example.test:443"]
scheme = "bearer"
source = { file = "/etc/callgate/secrets/api" }
"#;

/// A host with the agent, the policy, and an API that answers whoever has its token.
fn host() -> Result<Bed> {
    let mut world = World::new()?;
    world.upstream(Upstream::new(API).bearer("s3cret", "acme"))?;
    let bed = Bed::installed(world)?;
    bed.secret("api", "s3cret")?;
    bed.policy(POLICY)
        .with_context(|| bed.journal("callgate.service").unwrap_or_default())?;
    Ok(bed)
}

/// Calls the API with nothing set, and keeps what came of it in a file.
fn call(path: &str) -> String {
    format!("/usr/bin/curl -sS --max-time 20 -o /dev/null -w %%{{http_code}} https://{API}{path}")
}

/// A service that calls the API once at its start; `more` are settings of its own.
fn service(bed: &Bed, name: &str, more: &str) -> Result<()> {
    let unit = format!(
        "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart={}\n{more}",
        call(&format!("/v1/{name}"))
    );
    bed.unit(name, &unit)
}

/// A managed service that does nothing, running.
fn idle(bed: &Bed) -> Result<()> {
    bed.unit(
        "billing.service",
        "[Service]\nUser=nobody\nExecStart=/bin/sleep 1000\n",
    )?;
    enable(bed, "billing")?;
    bed.systemctl(&["start", "billing.service"])?.ok()?;
    Ok(())
}

/// What a service printed once it has said what its call `came to`.
fn came_to(bed: &Bed) -> Result<String> {
    wait::until("the call ended", wait::PATIENCE, || {
        let said = bed.journal("billing.service").ok()?;
        said.contains("came to").then_some(said)
    })
}

/// The slices of workloads that systemd keeps.
fn slices(bed: &Bed) -> Result<String> {
    let all = ["list-units", "--plain", "--no-legend", "--all", "--type=slice"];
    let ours = ["callgate.slice", "callgate-*.slice"];
    bed.systemctl(&[&all[..], &ours].concat())?.ok()
}

/// Starts a unit and gives what its programs printed.
fn started(bed: &Bed, unit: &str) -> Result<String> {
    let done = bed.systemctl(&["start", unit])?;
    let journal = bed.journal(unit)?;
    done.ok().with_context(|| journal.clone())?;
    Ok(journal)
}

/// Enables a unit and gives what was said.
fn enable(bed: &Bed, unit: &str) -> Result<String> {
    bed.run(["callgate", "enable", unit])?.ok()
}

/// Whether this call came through with the credential, on record as this unit's.
fn was_called(bed: &Bed, unit: &str, path: &str) -> Result<()> {
    bed.expect_record(&[
        ("workload", "billing".into()),
        ("unit", unit.into()),
        ("path", path.into()),
        ("status", 200.into()),
        ("credential.name", "api".into()),
    ])?;
    Ok(())
}

#[test]
fn a_unit_is_captured_from_its_first_instruction_and_at_each_restart() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    let unit = format!(
        "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecCondition={}\nExecStartPre={}\nExecStart={}\n",
        call("/v1/condition"),
        call("/v1/pre"),
        call("/v1/start"),
    );
    bed.unit("billing.service", &unit)?;
    let said = enable(&bed, "billing.service")?;
    assert!(said.contains("is managed from its next start on"), "{said}");
    started(&bed, "billing.service")?;
    for path in ["/v1/condition", "/v1/pre", "/v1/start"] {
        was_called(&bed, "billing.service", path)?;
    }
    let first = bed.property("billing.service", "InvocationID")?;
    bed.systemctl(&["restart", "billing.service"])?.ok()?;
    let second = bed.property("billing.service", "InvocationID")?;
    assert_ne!(first, second);
    wait::until("a record of the second run", wait::PATIENCE, || {
        let records = bed.records().ok()?;
        let of_second = records
            .iter()
            .filter(|one| one.text("kind") == "call" && one.text("invocation") == second);
        (of_second.count() == 3).then_some(())
    })
    .with_context(|| format!("{second}: {:?}", bed.records()))?;
    Ok(())
}

#[test]
fn what_the_policy_does_not_name_is_denied_to_a_unit_and_on_record() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let mut bed = host()?;
    bed.world_mut().upstream(Upstream::new("other.example.test"))?;
    let call = "/usr/bin/curl -sS --max-time 20 https://other.example.test/";
    bed.unit(
        "billing.service",
        &format!("[Service]\nType=oneshot\nExecStart={call}\n"),
    )?;
    enable(&bed, "billing")?;
    bed.systemctl(&["start", "billing.service"])?;
    assert_record!(
        bed,
        "unit" = "billing.service",
        "authority" = "other.example.test:443",
        "decision" = "deny"
    );
    Ok(())
}
