//! The same on a booted Debian: by a unit as it is enabled, and where the kernel programs alone hold.

use harness::Bed;

use super::*;

/// Waits for what it starts and passes on what that prints.
const BY_SYSTEMD: &[&str] = &["systemd-run", "--quiet", "--collect", "--wait", "--pipe"];

#[test]
fn nothing_that_a_unit_tries_is_seen_on_the_wire_nor_what_is_run_in_its_slice_alone() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let mut world = World::new()?;
    world.upstream(Upstream::new(API))?;
    let bed = Bed::installed(world)?;
    bed.policy(&workload("billing", "units = [\"billing.service\"]", ""))?;
    bed.write("/opt/leave.py", LEAVE)?;
    let world = bed.world();
    let wire = Outside::start(world, "wire", SNIFF, &[])?;
    let link = link_local(world)?;
    let neighbours = [V4, V6, &link];
    let leave = [&["/usr/bin/python3", "/opt/leave.py"], &neighbours[..]].concat();

    let text = format!("[Service]\nType=oneshot\nExecStart={}\n", leave.join(" "));
    bed.unit("billing.service", &text)?;
    bed.run(["callgate", "enable", "billing.service"])?.ok()?;
    let done = bed.systemctl(&["start", "billing.service"])?;
    let said = bed.journal("billing.service")?;
    done.ok().with_context(|| said.clone())?;
    was_held(&said);
    is_silent(world, &wire, &neighbours, &said)?;
    is_on_record(|| bed.records())?;

    // Without the unit's own filters of addresses and sockets, and with all capabilities.
    let slice = ["--slice=callgate-billing.slice"];
    let said = bed.run([BY_SYSTEMD, &slice, &leave].concat())?.ok()?;
    was_held(&said);
    // By the program (EPROTONOSUPPORT), not for want of the right.
    assert_eq!(said.matches(" raw 93\n").count(), 2, "{said}");
    is_silent(world, &wire, &neighbours, &said)?;

    bed.run([BY_SYSTEMD, &leave].concat())?.ok()?;
    has_left(world, &wire, &neighbours)
}
