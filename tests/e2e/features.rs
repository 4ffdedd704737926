//! What is said of the kernel that the tests run on, be it one that callgate can't run on.

use anyhow::{Context as _, Result};
use callgate::ebpf::Feature;
use callgate::ebpf::features;
use harness::{World, require};

const LACKING: Option<i32> = Some(3);

#[test]
fn doctor_and_run_name_what_this_kernel_lacks() -> Result<()> {
    require!(Root, CgroupV2, Agent);
    let world = World::new()?;
    world.write_config()?;
    world.policy("one.toml", "[[workload]]\nname = \"billing\"\n")?;
    let (there, missing): (Vec<_>, Vec<_>) = features::probe().into_iter().partition(|(_, present)| *present);
    let doctor = world.callgate("doctor", &[])?;
    for (feature, _) in &missing {
        for part in [feature.name(), feature.why(), feature.fix()] {
            assert!(doctor.stdout.contains(part), "{part}: {doctor:?}");
        }
    }
    let document = serde_json::from_str::<serde_json::Value>(&world.callgate("doctor", &["--json"])?.stdout)?;
    let checks = document["checks"].as_array().context("no checks")?;
    let status = |name: &str| {
        checks
            .iter()
            .find(|check| check["name"] == name)
            .map(|check| &check["status"])
    };
    for (expected, features) in [("pass", &there), ("fail", &missing)] {
        // What is a file is looked at with the host's own things, under another name.
        let probed = features
            .iter()
            .filter(|(feature, _)| *feature != Feature::TypeInfo);
        for (feature, _) in probed {
            assert_eq!(
                status(feature.name()).context(feature.name())?,
                expected,
                "{document:#}"
            );
        }
    }
    let Some((first, _)) = missing.first() else {
        return Ok(());
    };
    assert_eq!(doctor.code(), LACKING, "{doctor:?}");
    let refused = world.callgate("run", &[])?;
    assert_eq!(refused.code(), LACKING, "{refused:?}");
    for part in [first.name(), first.why(), first.fix()] {
        assert!(refused.stderr.contains(part), "{part}: {refused:?}");
    }
    Ok(())
}
