//! The package on a booted Debian: what an operator installs, upgrades and removes.

use anyhow::Result;
use harness::{Bed, Upstream, World, assert_record, require};

const POLICY: &str = r#"
[[workload]]
name = "billing"

  [[workload.allow]]
  name       = "charges"
  host       = "api.example.test"
  paths      = ["/v1/charges"]
  credential = "api"
  private    = true

[credential.api]
hosts  = ["api.example.test:443"]
scheme = "bearer"
source = { file = "/etc/callgate/secrets/api" }
"#;

const CALL: [&str; 8] = [
    "callgate",
    "exec",
    "--workload",
    "billing",
    "--",
    "curl",
    "-sS",
    "https://api.example.test/v1/charges",
];

fn installed() -> Result<Bed> {
    let mut world = World::new()?;
    world.upstream(Upstream::new("api.example.test").bearer("s3cret", "acme"))?;
    let bed = Bed::installed(world)?;
    bed.secret("api", "s3cret")?;
    bed.policy(POLICY)?;
    Ok(bed)
}

#[test]
fn a_fresh_package_runs_the_agent_and_its_first_policy_lets_a_call_out() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = installed()?;
    let reply = bed.run(CALL)?.ok()?;
    assert!(reply.contains("acme"), "{reply}");
    assert_record!(
        bed,
        "workload" = "billing",
        "status" = 200,
        "credential.name" = "api"
    );
    Ok(())
}

#[test]
fn filters_that_systemd_puts_on_workloads_are_named_by_the_doctor_and_do_no_harm() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = installed()?;
    // systemd puts the programs of this setting on the unit's own cgroup, below the workload's.
    let unit = [
        "systemd-run",
        "--slice=callgate-billing.slice",
        "--property=IPAddressDeny=192.0.2.0/24",
        "sleep",
        "60",
    ];
    bed.run(unit)?.ok()?;
    let doctor = bed.run(["callgate", "doctor"])?;
    assert!(doctor.stdout.contains("only filters: sd_fw_egress"), "{doctor:?}");
    let reply = bed.run(CALL)?.ok()?;
    assert!(reply.contains("acme"), "{reply}");
    Ok(())
}
