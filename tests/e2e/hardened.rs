//! What the agent does at run time, under the hardening of its installed unit.

use std::fs::File;

use anyhow::Result;
use harness::{Bed, Upstream, World, assert_record, bed, require, wait};

use crate::identity::API;

const POLICY: &str = r#"
[[workload]]
name = "billing"
units = ["billing*.service"]
PATHS

[credential.helper]
hosts  = ["api.example.test:443"]
scheme = "bearer"
source = { exec = ["/bin/sh", "-c", "CHECK cat /etc/callgate/secrets/read"] }

[credential.systemd]
hosts  = ["api.example.test:443"]
scheme = "bearer"
source = { systemd = "api" }
"#;

/// A credential helper is not root and may read all files, and no more.
const CHECK: &str = "grep -q '^CapPrm:.0*4$' /proc/self/status && test $(id -u) != 0 &&";

/// Has a room's namespace, given as standard input, stand for itself inside.
const ROOM: &str =
    "mkdir -p /run/netns && touch /run/netns/room && mount --bind /proc/self/fd/0 /run/netns/room";

/// The modes of what others may read, and of two things that they may not.
const OPEN: &str = "cd /run/callgate; stat -c %a . armed armed/billing trust/ca-bundle.pem \
    /sys/fs/cgroup/callgate.slice/callgate-billing.slice /var/log/callgate/audit.jsonl lock /var/lib/callgate | xargs";

/// Calls on and on, each by a new connection; prints the answers' codes.
const CALLER: &str = r#"[Service]
User=nobody
ExecStart=/bin/sh -c 'while :; do curl -s -m 2 -o /dev/null -w "%%{http_code}\n" https://API/helper || sleep 0.05; done'
"#;

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
    POLICY.replace("PATHS", &rules.concat()).replace("CHECK", CHECK)
}

#[test]
fn what_the_agent_does_at_run_time_it_can_do_as_the_installed_unit() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let mut world = World::new()?;
    world.upstream(Upstream::new(API).bearer("s3cret", "acme"))?;
    let room = world.room()?;
    let bed = Bed::installed(world)?;
    bed.write("/etc/credstore-test/api", "s3cret")?;
    bed.secret("read", "s3cret")?;
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
    assert_eq!(bed.sh(OPEN)?.ok()?, "755 755 644 644 755 640 600 700\n");
    is_not_root(&bed)?;
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
    let warned =
        "journalctl --no-pager --quiet --output=cat --priority=warning _SYSTEMD_UNIT=callgate.service";
    let warned = bed.run(warned.split(' '))?.ok()?;
    // The restart brought another policy, and a network namespace is served soon after its first connection.
    let due = [
        "a worker of the last agent is ended with its calls",
        "reason=\"no_listener\"",
    ];
    let is_due = |line: &str| due.iter().any(|words| line.contains(words));
    assert!(warned.lines().all(is_due), "{warned}");
    Ok(())
}

/// The supervisor has a user of its own and what its unit lists; the worker has another and nothing.
fn is_not_root(bed: &Bed) -> Result<()> {
    const RIGHTS: &str = r#"show() { awk '/^(Uid|Cap(Inh|Prm|Eff|Bnd|Amb)):/ { print $2 }' "/proc/$1/status" | xargs; }
show "$0"; show "$(pgrep --oldest --parent "$0" --full 'exe worker')"; id -u callgate-agent; id -u callgate"#;
    let pid = bed.property("callgate.service", "MainPID")?;
    let said = bed.run(["sh", "-c", RIGHTS, &pid])?.ok()?;
    let [supervisor, worker, own, unprivileged] = said.lines().collect::<Vec<_>>()[..] else {
        anyhow::bail!("four lines were expected: {said}");
    };
    let (none, listed) = ("0000000000000000", "000000c0002811e6");
    assert_ne!(own, unprivileged);
    assert_eq!(
        supervisor,
        format!("{own} {none} {listed} {listed} {listed} {none}")
    );
    assert_eq!(
        worker,
        format!("{unprivileged} {none} {none} {none} {none} {none}")
    );
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

#[test]
fn a_bpf_file_system_that_the_host_unmounts_keeps_units_from_starting_until_the_agent_is_restarted()
-> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let mut world = World::new()?;
    world.upstream(Upstream::new(API).bearer("s3cret", "acme"))?;
    let bed = Bed::boot(world)?;
    // One that nobody outside of the container keeps.
    bed.sh("umount /sys/fs/bpf && mount -t bpf bpf /sys/fs/bpf")?
        .ok()?;
    bed.install(&bed::package()?)?;
    bed.secret("read", "s3cret")?;
    let policy = policy()
        .replace("exe_sha256 = \"DIGEST\"", "")
        .replace("{ systemd = \"api\" }", "{ exec = [\"/bin/echo\", \"s3cret\"] }");
    bed.policy(&policy)?;
    assert_eq!(bed.run(["callgate", "status"])?.code(), Some(0));
    bed.unit("billing-caller.service", &CALLER.replace("API", API))?;
    bed.run(["callgate", "enable", "billing-caller"])?.ok()?;
    bed.systemctl(&["start", "billing-caller"])?.ok()?;
    answered(&bed, 0)?;

    bed.run(["umount", "/sys/fs/bpf"])?.ok()?;
    wait::until("a perimeter that is not intact", wait::PATIENCE, || {
        (bed.run(["callgate", "status"]).ok()?.code() == Some(1)).then_some(())
    })?;
    assert_record!(bed, "error.kind" = "perimeter", "outcome" = "failed");
    let doctor = bed.run(["callgate", "doctor"])?;
    assert_eq!(doctor.code(), Some(3), "{doctor:?}");
    let log = bed.journal("callgate.service")?;
    assert!(log.contains("a restart of callgate.service does"), "{log}");
    assert!(
        !bed.exists("/run/callgate/armed/billing")?,
        "units may still start"
    );
    // What is pinned where nobody else sees it holds all the same.
    let before = codes(&bed)?.len();
    answered(&bed, before)?;

    let restarted = bed.systemctl(&["restart", "callgate"])?;
    assert_eq!(restarted.code(), Some(0), "{}", bed.journal("callgate.service")?);
    wait::until("an agent that finds nothing wrong", wait::PATIENCE, || {
        (bed.run(["callgate", "status"]).ok()?.code() == Some(0)).then_some(())
    })?;
    assert!(bed.exists("/sys/fs/bpf/callgate/links")?);
    assert!(bed.exists("/run/callgate/armed/billing")?, "units may not start");
    // Its own mount namespace keeps the file system of before, but nothing is pinned on it any more.
    let before = codes(&bed)?.len();
    answered(&bed, before)?;
    let codes = codes(&bed)?;
    // The upstream's own answer to who comes without a key, and so past the agent.
    assert!(!codes.iter().any(|code| code == "401"), "{codes:?}");
    Ok(())
}

fn codes(bed: &Bed) -> Result<Vec<String>> {
    let said = bed.journal("billing-caller.service")?;
    Ok(said.lines().map(str::to_owned).collect())
}

/// Waits until a call beyond the first so many is answered.
fn answered(bed: &Bed, after: usize) -> Result<()> {
    wait::until("an answered call", wait::PATIENCE, || {
        let codes = codes(bed).ok()?;
        codes.iter().skip(after).any(|code| code == "200").then_some(())
    })
}

#[test]
fn what_an_agent_of_root_left_is_taken_over_by_one_that_is_not_and_back() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let mut world = World::new()?;
    world.upstream(Upstream::new(API).bearer("s3cret", "acme"))?;
    let bed = Bed::installed(world)?;
    bed.secret("read", "s3cret")?;
    bed.policy(
        &policy()
            .replace("exe_sha256 = \"DIGEST\"", "")
            .replace(
                "{ systemd = \"api\" }",
                "{ file = \"/etc/callgate/secrets/read\" }",
            )
            .replace(CHECK, ""),
    )?;
    bed.unit("billing-caller.service", &CALLER.replace("API", API))?;
    bed.run(["callgate", "enable", "billing-caller"])?.ok()?;
    bed.systemctl(&["start", "billing-caller"])?.ok()?;
    let owner = "stat -c %U /var/lib/callgate/ca.pem /var/log/callgate/audit.jsonl /run/callgate/lock | uniq";
    let authority = std::fs::read(bed.path("/var/lib/callgate/ca.pem"))?;
    let root = "callgate.service.d/root.conf";
    for user in ["root", "callgate-agent"] {
        if user == "root" {
            bed.unit(
                root,
                "[Service]\nUser=\nExecStart=\nExecStart=/usr/bin/callgate run\n",
            )?;
        } else {
            bed.unit(root, "")?;
        }
        bed.systemctl(&["restart", "callgate"])?.ok()?;
        assert_eq!(bed.sh(owner)?.ok()?.trim(), user);
        let before = codes(&bed)?.len();
        answered(&bed, before)?;
        bed.run(["callgate", "reload"])?.ok()?;
    }
    assert_eq!(std::fs::read(bed.path("/var/lib/callgate/ca.pem"))?, authority);
    let codes = codes(&bed)?;
    assert!(!codes.iter().any(|code| code == "401"), "{codes:?}");
    let log = bed.journal("callgate.service")?;
    let refused = ["not permitted", "ermission denied"];
    assert!(!refused.iter().any(|words| log.contains(words)), "{log}");
    Ok(())
}
