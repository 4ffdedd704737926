//! What a managed unit can't do, and what holds it when the kernel programs are gone.

use super::*;

const WAYS_OUT: &str = include_str!("ways_out.py");

#[test]
fn ways_around_the_kernel_programs_are_closed_to_units_even_of_root() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    prepare_ways_out(&bed)?;
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
        // ENOSYS, by which libraries know to do without.
        assert!(said.contains("move child closed: [Errno 38]"), "{unit}: {said}");
    }
    Ok(())
}

/// Puts the ways out there, with programs that would act for whoever asks; all of them work for an unmanaged user.
pub(crate) fn prepare_ways_out(bed: &Bed) -> Result<()> {
    bed.write("/opt/ways_out.py", WAYS_OUT)?;
    bed.sh("cp /usr/bin/python3 /opt/setuid && chmod 4755 /opt/setuid")?
        .ok()?;
    bed.unit("fake-docker.service", "[Service]\nExecStart=/bin/sleep 1000\n")?;
    bed.unit(
        "fake-docker.socket",
        "[Socket]\nListenStream=/run/docker.sock\nSocketMode=0666\n",
    )?;
    bed.systemctl(&["start", "fake-docker.socket"])?.ok()?;
    let by_root = ["python3", "/opt/ways_out.py", "docker", "systemd-run"];
    let by_nobody = [
        "setpriv",
        "--reuid=nobody",
        "--clear-groups",
        "python3",
        "/opt/ways_out.py",
        "docker",
        "setuid",
    ];
    for command in [&by_root[..], &by_nobody] {
        let said = bed.run(command)?.ok()?;
        assert_eq!(said.matches("OPEN").count(), 2, "{said}");
    }
    Ok(())
}

#[test]
fn a_service_that_was_left_open_is_reached_and_nothing_else_is() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    prepare_ways_out(&bed)?;
    let unit = "billing.service";
    let text = "[Service]\nType=oneshot\nUser=nobody\nExecStart=/usr/bin/python3 /opt/ways_out.py\n";
    bed.unit(unit, text)?;
    bed.run(["callgate", "enable", "--leave-open", "/run/docker.sock", unit])?
        .ok()?;
    let said = started(&bed, unit)?;
    assert!(said.contains("all tried"), "{said}");
    assert!(said.contains("docker OPEN"), "{said}");
    assert_eq!(said.matches("OPEN").count(), 1, "{said}");
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
