//! What a managed unit can't do, and what holds it when the kernel programs are gone.

use super::*;

const WAYS_OUT: &str = include_str!("ways_out.py");

#[test]
fn ways_around_the_kernel_programs_are_closed_to_units_even_of_root() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    bed.write("/opt/ways_out.py", WAYS_OUT)?;
    let text = |more: &str| {
        format!(
            "[Service]\nType=oneshot\nExecStart=/usr/bin/python3 /opt/ways_out.py\nReadWritePaths=/etc\n{more}"
        )
    };
    let units = [
        ("billing-root.service", ""),
        (
            "billing-listed.service",
            "SystemCallFilter=@system-service @mount bpf\n",
        ),
        (
            "billing-able.service",
            "User=nobody\nAmbientCapabilities=CAP_NET_RAW CAP_SYS_ADMIN CAP_DAC_OVERRIDE\nRestrictAddressFamilies=AF_INET AF_PACKET AF_VSOCK AF_UNIX\n",
        ),
    ];
    for (unit, more) in units {
        bed.unit(unit, &text(more))?;
        enable(&bed, unit)?;
        let said = started(&bed, unit)?;
        assert!(said.contains("all tried"), "{unit}: {said}");
        assert!(!said.contains("OPEN"), "{unit}: {said}");
        // By its family, whatever the unit may do: EAFNOSUPPORT.
        for family in ["packet", "xdp", "vsock"] {
            let closed = format!("{family} closed: [Errno 97]");
            assert!(said.contains(&closed), "{unit}: {closed} is not in {said}");
        }
    }
    Ok(())
}

#[test]
fn systemds_own_filter_holds_a_unit_also_when_the_kernel_programs_are_gone() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    let call = "/usr/bin/curl -sS --connect-timeout 2 -o /dev/null https://api.example.test/v1/late";
    let text = format!(
        "[Service]\nType=exec\nExecStart=/bin/sh -c 'until [ -e /run/gone ]; do sleep 0.05; done; {call}; echo came to $$?'\n"
    );
    bed.unit("billing.service", &text)?;
    enable(&bed, "billing")?;
    bed.systemctl(&["start", "billing.service"])?.ok()?;
    bed.systemctl(&["stop", "callgate.service"])?.ok()?;
    bed.run(["rm", "-r", "/sys/fs/bpf/callgate"])?.ok()?;
    bed.run(["touch", "/run/gone"])?.ok()?;
    let said = came_to(&bed)?;
    assert!(!said.contains("came to 0"), "{said}");
    let log = bed.world().server(API)?.log()?;
    assert!(log.iter().all(|one| one.uri != "/v1/late"), "it went out");
    Ok(())
}
