//! The roots that a unit sees: the host's and the agent's, also when the host's change while it runs.

use super::*;

#[test]
fn the_roots_of_a_running_unit_follow_the_hosts_without_a_restart() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    let text = "[Service]\nType=exec\nUser=nobody\nExecStart=/bin/sleep 1000\n";
    bed.unit("billing.service", text)?;
    enable(&bed, "billing")?;
    bed.systemctl(&["start", "billing.service"])?.ok()?;
    let pid = bed.property("billing.service", "MainPID")?;
    let count = || -> Result<usize> {
        let script =
            format!("nsenter --target {pid} --mount grep -c BEGIN /etc/ssl/certs/ca-certificates.crt");
        Ok(bed.sh(&script)?.ok()?.trim().parse()?)
    };
    let host = |what: &str| -> Result<usize> { Ok(bed.sh(what)?.ok()?.trim().parse()?) };
    let of_host = "grep -c BEGIN /etc/ssl/certs/ca-certificates.crt";
    let before = host(of_host)?;
    assert_eq!(count()?, before + 1, "the host's and the agent's");

    bed.sh("sed -i '1,40s/^mozilla/!mozilla/' /etc/ca-certificates.conf && update-ca-certificates")?
        .ok()?;
    let after = host(of_host)?;
    assert_ne!(before, after, "the host's roots did not change");
    wait::until("the unit sees it", wait::PATIENCE, || {
        (count().ok()? == after + 1).then_some(())
    })?;
    let links = bed.sh(&format!(
        "nsenter --target {pid} --mount ls /etc/ssl/certs | sort >/tmp/inside; ls /etc/ssl/certs | sort | diff - /tmp/inside"
    ))?;
    assert_eq!(links.code(), Some(0), "{links:?}");
    Ok(())
}

#[test]
fn a_program_without_our_variables_trusts_the_agent_and_the_host_outside_does_not() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    let text = format!(
        "[Service]\nType=oneshot\nUser=nobody\nExecStart=/usr/bin/env -i {}\n",
        call("/v1/bare")
    );
    bed.unit("billing.service", &text)?;
    enable(&bed, "billing")?;
    started(&bed, "billing.service")?;
    was_called(&bed, "billing.service", "/v1/bare")?;
    let ours = bed.sh("grep -c BEGIN /run/callgate/trust/ca-bundle.pem; grep -c BEGIN /etc/ssl/certs/ca-certificates.crt")?.ok()?;
    let counts: Vec<u32> = ours.lines().map(str::parse).collect::<Result<_, _>>()?;
    assert_eq!(counts[0], counts[1] + 1);
    Ok(())
}

#[test]
fn roots_that_could_not_be_renewed_are_told_and_renewed_once_that_is_mended() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    assert_eq!(bed.run(["callgate", "status"])?.code(), Some(0));
    // Where the new bundle would be written first.
    let aside = "/run/callgate/trust/ca-bundle.pem.new";
    bed.run(["mkdir", aside])?.ok()?;
    bed.sh("sed -i '1,40s/^mozilla/!mozilla/' /etc/ca-certificates.conf && update-ca-certificates")?
        .ok()?;
    let (status, doctor) = wait::until("the failure is told", wait::PATIENCE, || {
        let status = bed.run(["callgate", "status"]).ok()?;
        (status.code() == Some(1)).then(|| (status, bed.run(["callgate", "doctor"])))
    })?;
    assert!(status.stdout.contains("roots       OLD"), "{status:?}");
    assert!(status.stdout.contains(aside), "{status:?}");
    let doctor = doctor?;
    assert_eq!(doctor.code(), Some(1), "{doctor:?}");
    assert!(doctor.stdout.contains("warn roots renewed"), "{doctor:?}");
    bed.run(["rmdir", aside])?.ok()?;
    wait::until("the roots are renewed", wait::PATIENCE, || {
        (bed.run(["callgate", "status"]).ok()?.code() == Some(0)).then_some(())
    })?;
    let counts = bed
        .sh("grep -c BEGIN /run/callgate/trust/ca-bundle.pem; grep -c BEGIN /etc/ssl/certs/ca-certificates.crt")?
        .ok()?;
    let counts: Vec<u32> = counts.lines().map(str::parse).collect::<Result<_, _>>()?;
    assert_eq!(counts[0], counts[1] + 1);
    Ok(())
}
