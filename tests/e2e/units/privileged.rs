//! Commands that systemd runs with full privileges for a unit, and what of the policy a drop-in depends on.

use super::*;

/// Writes itself into the host's root cgroup and calls the API from there.
const LEAVE: &str = "echo $$$$ >/sys/fs/cgroup/cgroup.procs && exec";

#[test]
fn a_command_with_full_privileges_is_captured_but_could_leave_so_the_operator_must_accept_it() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    let text = format!(
        "[Service]\nType=oneshot\nUser=nobody\nExecStartPre=+{}\nExecStartPre=!{}\nExecStartPre=+/bin/sh -c '{LEAVE} {}'\nExecStart=/bin/true\n",
        call("/v1/plus"),
        call("/v1/bang"),
        call("/v1/left"),
    );
    bed.unit("billing.service", &text)?;
    let refused = bed.run(["callgate", "enable", "billing"])?;
    assert_eq!(refused.code(), Some(1), "{refused:?}");
    let line = "refused: ExecStartPre: /usr/bin/curl runs with full privileges";
    assert!(refused.stdout.contains(line), "{refused:?}");
    assert!(!bed.exists("/etc/systemd/system/billing.service.d")?);

    let accepted = bed
        .run(["callgate", "enable", "--allow-privileged", "billing"])?
        .ok()?;
    assert!(
        accepted.contains("warning: ExecStartPre: /usr/bin/curl runs with full"),
        "{accepted}"
    );
    assert!(accepted.contains("runs as root, not as nobody"), "{accepted}");
    let doctor = bed.run(["callgate", "doctor"])?;
    assert_eq!(doctor.code(), Some(1), "{doctor:?}");
    assert!(doctor.stdout.contains("warn unit"), "{doctor:?}");
    assert!(
        doctor.stdout.contains("-> take the setting out, or"),
        "{doctor:?}"
    );
    started(&bed, "billing.service")?;
    for path in ["/v1/plus", "/v1/bang"] {
        was_called(&bed, "billing.service", path)?;
    }
    // Why it is refused: the one that left went out by itself, and has no record.
    let log = bed.world().server(API)?.log()?;
    let left: Vec<_> = log.iter().filter(|one| one.uri == "/v1/left").collect();
    assert_eq!(left.len(), 1, "{log:?}");
    assert!(!left[0].authorization.contains("s3cret"), "{left:?}");
    assert!(bed.records()?.iter().all(|one| one.text("path") != "/v1/left"));
    Ok(())
}

#[test]
fn a_policy_that_changes_what_a_drop_in_says_names_the_units_to_enable_again() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = host()?;
    service(&bed, "billing.service", "User=nobody\n")?;
    let again = "callgate enable --workload billing --leave-open /run/docker.sock billing.service";
    bed.sh(again)?.ok()?;
    let reload = |policy: &str| -> Result<String> {
        bed.write("/etc/callgate/policy.d/test.toml", policy)?;
        bed.run(["callgate", "reload"])?.ok()
    };
    let said = reload(POLICY)?;
    assert!(!said.contains("drop-in"), "{said}");

    let listen = POLICY.replacen("[[workload]]\n", "[[workload]]\nlisten = [8080]\n", 1);
    let rule = "  [[workload.direct]]\n  cidr = \"10.9.8.0/24\"\n  port = 5432\n\n[credential.api]\n";
    let direct = POLICY.replacen("[credential.api]\n", rule, 1);
    for policy in [listen, direct] {
        let said = reload(&policy)?;
        let fix = format!("{again}; systemctl try-restart billing.service");
        assert!(said.contains(&fix), "{said}");
        let doctor = bed.run(["callgate", "doctor"])?;
        assert_eq!(doctor.code(), Some(1), "{doctor:?}");
        assert!(doctor.stdout.contains(&fix), "{doctor:?}");
        bed.sh(&fix)?.ok()?;
        let said = reload(&policy)?;
        assert!(!said.contains("drop-in"), "{said}");
    }
    Ok(())
}
