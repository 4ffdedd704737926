//! What the kernel decided is on record whole, whatever floods it.

use anyhow::Result;
use harness::audit::matching;
use harness::{Record, Upstream, World, require, wait};

use crate::identity::API;

const POLICY: &str = "[[workload]]\nname = \"other\"\n[[workload.direct]]\ncidr = \"203.0.113.10/32\"\nport = 443\nforce = true\n";
/// Refusals first, then connections that pass, all within a second, and nothing after them.
const FLOOD: &str = r#"
import socket
for turn in range(300):
    with socket.socket() as one:
        try: one.connect(("203.0.113.10", 81))
        except OSError: pass
for turn in range(150):
    with socket.create_connection(("203.0.113.10", 443), 5) as one: one.send(b"out")
"#;

/// How many events these records stand for.
fn sum(records: &[&Record]) -> u64 {
    records
        .iter()
        .filter_map(|record| record.field("count").as_u64())
        .sum()
}

#[test]
fn connections_that_pass_in_the_kernel_are_all_on_record_behind_a_flood_of_refusals() -> Result<()> {
    require!(Root, CgroupV2, Btf, Agent);
    let mut world = World::new()?;
    world.upstream(Upstream::new(API))?;
    world.policy("other.toml", POLICY)?;
    world.start_agent()?;
    world.workload("other")?.run(["python3", "-c", FLOOD])?.ok()?;
    let passed = [
        ("kind", "direct".into()),
        ("workload", "other".into()),
        ("original_destination", "203.0.113.10:443".into()),
        ("decision", "allow".into()),
    ];
    let refused = [
        ("kind", "kernel_refusal".into()),
        ("workload", "other".into()),
        ("reason", "port_not_named".into()),
    ];
    let sums = |records: &[Record]| {
        (
            sum(&matching(records, &passed)),
            sum(&matching(records, &refused)),
        )
    };
    let mut last = (0, 0);
    let all = wait::until("records of all", wait::PATIENCE, || {
        last = sums(&world.records().ok()?);
        (last.0 >= 150 && last.1 >= 300).then_some(())
    });
    assert_eq!(last, (150, 300), "{all:?}");
    let records = world.records()?;
    let first = matching(&records, &passed);
    assert!(
        first
            .iter()
            .any(|record| record.text("comm").starts_with("python3")),
        "{first:?}"
    );
    Ok(())
}
