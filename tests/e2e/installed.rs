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
    let call = [
        "callgate",
        "exec",
        "--workload",
        "billing",
        "--",
        "curl",
        "-sS",
        "https://api.example.test/v1/charges",
    ];
    let reply = bed.run(call)?.ok()?;
    assert!(reply.contains("acme"), "{reply}");
    assert_record!(
        bed,
        "workload" = "billing",
        "status" = 200,
        "credential.name" = "api"
    );
    Ok(())
}
