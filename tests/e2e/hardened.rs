//! What the agent does at run time, under the hardening of its installed unit.

use std::fs::File;

use anyhow::Result;
use harness::{Bed, Upstream, World, assert_record, require, wait};

use crate::identity::API;

const POLICY: &str = r#"
[[workload]]
name = "billing"
units = ["billing*.service"]
PATHS

[credential.helper]
hosts  = ["api.example.test:443"]
scheme = "bearer"
source = { exec = ["/usr/bin/python3", "-c", "print('s3cret')"] }

[credential.systemd]
hosts  = ["api.example.test:443"]
scheme = "bearer"
source = { systemd = "api" }
"#;

/// Has a room's namespace, given as standard input, stand for itself inside.
const ROOM: &str =
    "mkdir -p /run/netns && touch /run/netns/room && mount --bind /proc/self/fd/0 /run/netns/room";

fn policy() -> String {
    let rules = [
        ("helper", ""),
        ("systemd", ""),
        ("home", "exe_sha256 = \"DIGEST\"\n"),
    ];
    let rules = rules.map(|(name, more)| {
        let credential = if name == "systemd" { "systemd" } else { "helper" };
        format!(
            "[[workload.allow]]\nname = \"{name}\"\nhost = \"{API}\"\npaths = [\"/{name}\"]\ncredential = \"{credential}\"\nprivate = true\n{more}"
        )
    });
    POLICY.replace("PATHS", &rules.concat())
}

#[test]
fn what_the_agent_does_at_run_time_it_can_do_as_the_installed_unit() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let mut world = World::new()?;
    world.upstream(Upstream::new(API).bearer("s3cret", "acme"))?;
    let room = world.room()?;
    let bed = Bed::installed(world)?;
    bed.write("/etc/credstore-test/api", "s3cret")?;
    bed.sh("chmod 700 /etc/credstore-test; chmod 600 /etc/credstore-test/api; install -d -m 700 -o nobody /home/nobody; install -m 755 /usr/bin/curl /home/nobody/curl; echo 'canary_seconds = 1' >/etc/callgate/callgate.toml; printf '[audit]\\nmax_size_mib = 1\\n' >>/etc/callgate/callgate.toml")?
        .ok()?;
    bed.unit(
        "callgate.service.d/credential.conf",
        "[Service]\nLoadCredential=api:/etc/credstore-test/api\n",
    )?;
    let digest = bed.sh("sha256sum /home/nobody/curl | cut -c1-64")?.ok()?;
    bed.write(
        "/etc/callgate/policy.d/test.toml",
        &policy().replace("DIGEST", digest.trim()),
    )?;
    bed.systemctl(&["restart", "callgate"])?.ok()?;
    for (name, curl) in [
        ("helper", "/usr/bin/curl"),
        ("systemd", "/usr/bin/curl"),
        ("home", "/home/nobody/curl"),
    ] {
        let unit = format!("billing-{name}.service");
        let text =
            format!("[Service]\nType=oneshot\nUser=nobody\nExecStart={curl} -sS https://{API}/{name}\n");
        bed.unit(&unit, &text)?;
        bed.run(["callgate", "enable", &unit])?.ok()?;
        bed.systemctl(&["start", &unit])?;
        assert_record!(bed, "unit" = unit, "rule" = name, "status" = 200);
    }
    in_a_namespace(&bed, &room)?;
    // Rotation, and canaries meanwhile.
    bed.sh("head -c 1100000 /dev/zero | tr '\\0' ' ' >>/var/log/callgate/audit.jsonl")?
        .ok()?;
    wait::until("the log is rotated", wait::PATIENCE, || {
        bed.exists("/var/log/callgate/audit.jsonl.1").ok()?.then_some(())
    })?;
    let status = bed.run(["callgate", "status"])?;
    assert_eq!(status.code(), Some(0), "{status:?}");
    let doctor = bed.run(["callgate", "doctor"])?;
    assert!(
        doctor.stdout.contains("no workload's canary failed"),
        "{doctor:?}"
    );
    assert!(!doctor.stdout.contains("FAIL"), "{doctor:?}");
    let log = bed.journal("callgate.service")?;
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    Ok(())
}

fn in_a_namespace(bed: &Bed, room: &harness::sandbox::Room) -> Result<()> {
    let mut bind = bed.command(["sh", "-c", ROOM]);
    let bound = bind.stdin(File::open(&room.file)?).status()?;
    assert!(bound.success());
    bed.unit(
        "billing-room.service",
        &format!("[Service]\nType=oneshot\nUser=nobody\nNetworkNamespacePath=/run/netns/room\nExecStart=/bin/sh -c 'until curl -sS -m 5 https://{API}/helper; do sleep 0.1; done'\nTimeoutStartSec=20\n"),
    )?;
    bed.run(["callgate", "enable", "billing-room"])?.ok()?;
    let done = bed.systemctl(&["start", "billing-room"])?;
    assert_eq!(done.code(), Some(0), "{}", bed.journal("billing-room.service")?);
    assert_record!(bed, "unit" = "billing-room.service", "status" = 200);
    Ok(())
}
