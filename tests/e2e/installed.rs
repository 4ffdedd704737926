//! The package on a booted Debian: what an operator installs, upgrades and removes.

mod purge;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use harness::{Bed, Upstream, World, assert_record, bed, require};

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

/// The settings as they are shipped.
const DEFAULTS: &str = include_str!("../../agent/config/default.toml");

const CALL: [&str; 8] = [
    "callgate",
    "exec",
    "--workload",
    "billing",
    "--",
    "curl",
    "-sS",
    "https://api.example.test/v1/charges",
];

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
    let reply = bed.run(CALL)?.ok()?;
    assert!(reply.contains("acme"), "{reply}");
    assert_record!(
        bed,
        "workload" = "billing",
        "status" = 200,
        "credential.name" = "api"
    );
    let directories = "cd /etc/callgate && stat -c '%n %a %U %G' . policy.d secrets";
    assert_eq!(
        bed.sh(directories)?.ok()?,
        ". 755 root root\npolicy.d 755 root root\nsecrets 700 root root\n"
    );
    assert_eq!(
        fs::read_to_string(bed.path("/etc/callgate/callgate.toml"))?,
        DEFAULTS
    );
    Ok(())
}

#[test]
fn man_pages_and_completions_lie_where_man_and_the_shells_look() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = installed()?;
    let listed = bed.run(["dpkg", "-L", "callgate"])?.ok()?;
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../agent/dist/man");
    let mut places: Vec<_> = fs::read_dir(&made)?
        .map(|page| Ok(format!("/usr/share/man/man8/{}.gz", page?.file_name().display())))
        .collect::<Result<_>>()?;
    assert!(places.len() > 10, "{places:?}");
    places.extend(
        [
            "bash-completion/completions/callgate",
            "zsh/vendor-completions/_callgate",
            "fish/vendor_completions.d/callgate.fish",
        ]
        .map(|place| format!("/usr/share/{place}")),
    );
    let lacks: Vec<_> = places
        .iter()
        .filter(|place| !listed.lines().any(|line| line == place.as_str()))
        .collect();
    assert!(lacks.is_empty(), "{lacks:?} not in {listed}");
    // What shells read works there: bash by itself.
    let script = ". /usr/share/bash-completion/completions/callgate && complete -p callgate";
    let shown = bed.run(["bash", "-c", script])?.ok()?;
    assert!(shown.contains("_callgate"), "{shown}");
    Ok(())
}

#[test]
fn filters_that_systemd_puts_on_workloads_are_named_by_the_doctor_and_do_no_harm() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = installed()?;
    // systemd puts the programs of this setting on the unit's own cgroup, below the workload's.
    let unit = [
        "systemd-run",
        "--slice=callgate-billing.slice",
        "--property=IPAddressDeny=192.0.2.0/24",
        "sleep",
        "60",
    ];
    bed.run(unit)?.ok()?;
    let doctor = bed.run(["callgate", "doctor"])?;
    assert!(doctor.stdout.contains("only filters: sd_fw_egress"), "{doctor:?}");
    let reply = bed.run(CALL)?.ok()?;
    assert!(reply.contains("acme"), "{reply}");
    Ok(())
}

#[test]
fn a_removed_package_keeps_what_the_operator_wrote_and_a_new_one_takes_it_up() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = installed()?;
    bed.run(["dpkg", "--remove", "callgate"])?.ok()?;
    assert_eq!(
        bed.sh("find /sys/fs/bpf/callgate /sys/fs/cgroup/callgate.slice /run/callgate")?
            .stdout,
        ""
    );
    assert!(bed.path("/etc/callgate/policy.d/test.toml").exists());
    assert!(bed.path("/etc/callgate/secrets/api").exists());
    let authority = fs::read(bed.path("/var/lib/callgate/ca.pem"))?;
    bed.install(&bed::package()?)?;
    let reply = bed.run(CALL)?.ok()?;
    assert!(reply.contains("acme"), "{reply}");
    assert_eq!(fs::read(bed.path("/var/lib/callgate/ca.pem"))?, authority);
    Ok(())
}

/// Where systemd does not let the service write.
const ELSEWHERE: &str = "/srv/callgate-pins";

#[test]
fn pins_elsewhere_take_a_drop_in_which_is_told_and_go_with_the_package() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = installed()?;
    let pins = |dir: &str| bed.sh(&format!("find {dir} -path '*/cgroup-*/cg_connect4'"));
    assert_ne!(pins("/sys/fs/bpf/callgate")?.stdout, "");
    let before = bed.sh("findmnt --noheadings --output TARGET,FSTYPE")?.ok()?;
    bed.write(
        "/etc/callgate/callgate.toml",
        &format!("bpffs_dir = {ELSEWHERE:?}\n"),
    )?;
    let line = format!("ReadWritePaths=-{ELSEWHERE}");
    let checked = bed.run(["callgate", "check"])?;
    assert_eq!(checked.code(), Some(2), "{checked:?}");
    let doctor = bed.run(["callgate", "doctor"])?;
    assert_eq!(doctor.code(), Some(3), "{doctor:?}");
    let failed = bed.systemctl(&["restart", "callgate.service"])?;
    assert!(!failed.status.success(), "{failed:?}");
    for said in [checked.stdout, doctor.stdout, bed.journal("callgate.service")?] {
        assert!(said.contains(&line) && said.contains("bpffs_dir"), "{said}");
    }
    assert!(!bed.exists(ELSEWHERE)?, "what can't be used was made");

    bed.unit("callgate.service.d/paths.conf", &format!("[Service]\n{line}\n"))?;
    bed.systemctl(&["restart", "callgate.service"])?.ok()?;
    bed.run(["callgate", "check"])?.ok()?;
    assert!(bed.run(CALL)?.ok()?.contains("acme"));
    assert_ne!(pins(ELSEWHERE)?.stdout, "");
    assert_eq!(
        pins("/sys/fs/bpf/callgate")?.stdout,
        "",
        "what was held is held twice"
    );
    bed.systemctl(&["restart", "callgate.service"])?.ok()?;
    assert!(bed.run(CALL)?.ok()?.contains("acme"));

    // What others have at the usual place meanwhile is theirs, and so is what is mounted there.
    bed.systemctl(&["stop", "callgate.service"])?.ok()?;
    for (theirs, back) in [
        (
            "mkdir -p /sys/fs/bpf/callgate/others",
            "rmdir /sys/fs/bpf/callgate/others",
        ),
        (
            "mount -t tmpfs none /sys/fs/bpf/callgate",
            "umount /sys/fs/bpf/callgate",
        ),
    ] {
        bed.sh(theirs)?.ok()?;
        bed.run(["callgate", "release", "--all"])?.ok()?;
        assert!(!bed.exists(ELSEWHERE)?, "{theirs}: its own stays");
        bed.sh(back)?.ok().context(theirs)?;
    }
    bed.systemctl(&["start", "callgate.service"])?.ok()?;
    assert!(bed.run(CALL)?.ok()?.contains("acme"));
    bed.run(["dpkg", "--purge", "callgate"])?.ok()?;
    for dir in [ELSEWHERE, "/sys/fs/bpf/callgate"] {
        assert!(!bed.exists(dir)?, "{dir} stays");
    }
    let after = bed.sh("findmnt --noheadings --output TARGET,FSTYPE")?.ok()?;
    assert_eq!(difference(&before, &after), Vec::<String>::new());
    Ok(())
}

/// The lines that only one of them has.
fn difference(before: &str, after: &str) -> Vec<String> {
    let lines = |text: &str| {
        text.lines()
            .map(str::to_owned)
            .collect::<std::collections::BTreeSet<_>>()
    };
    let (before, after) = (lines(before), lines(after));
    let gone = before.difference(&after).map(|line| format!("- {line}"));
    gone.chain(after.difference(&before).map(|line| format!("+ {line}")))
        .collect()
}

#[test]
fn workloads_are_let_go_by_a_stopped_agent_alone_and_in_use_only_when_told() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let bed = installed()?;
    let held = bed.run(["callgate", "release", "--all"])?;
    assert_eq!(held.code(), Some(3), "{held:?}");
    let first = bed.property("callgate", "MainPID")?;
    let why = format!("another agent holds /run/callgate/lock (process {first}); stop it first");
    assert!(held.stderr.contains(&why), "{held:?}");
    bed.run([
        "systemd-run",
        "--slice=callgate-billing.slice",
        "--unit=user",
        "sleep",
        "60",
    ])?
    .ok()?;
    bed.systemctl(&["stop", "callgate"])?.ok()?;
    let used = bed.run(["callgate", "release", "--all"])?;
    assert_eq!(used.code(), Some(1), "{used:?}");
    assert!(used.stderr.contains("processes run in billing"), "{used:?}");
    assert!(
        bed.exists("/run/callgate/armed/billing")?,
        "a refused release changed something"
    );

    let told = bed.run(["callgate", "release", "--all", "--running"])?;
    assert_eq!(told.code(), Some(0), "{told:?}");
    assert!(told.stdout.contains("billing: its processes run on"), "{told:?}");
    assert!(!bed.exists("/run/callgate/armed/billing")?);
    assert_eq!(bed.property("user.service", "ActiveState")?, "active");
    Ok(())
}
