//! A purge leaves the host as it was: what lies on its disk, what its kernel holds for it, and what systemd has.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use harness::{Bed, Upstream, World, assert_record, bed, launch, require};
use serde_json::Value;

use super::{POLICY, difference};

/// Files by kind, mode, owner and target; users, units, sockets that listen, and processes. Left out: what the journal, dpkg and
/// apt write of each installation and each boot, and what is nobody's to keep.
const FILES: &str = r#"
    find / -xdev \( -path /proc -o -path /sys -o -path /run/systemd/journal -o -path /run/log -o -path /var/log/journal \
        -o -path /var/cache -o -path /var/lib/dpkg -o -path /var/log/dpkg.log -o -path /var/log/alternatives.log \
        -o -path /run/systemd/units -o -path /var/tmp -o -path /tmp \) -prune \
        -o -printf '%p %y %#m %U:%G %l\n' | sort
    find /run -xdev -name '*callgate*' -not -path '/run/systemd/*' | sort
    cat /etc/passwd /etc/group /etc/shadow /etc/gshadow /etc/subuid /etc/subgid
    systemctl list-unit-files --no-legend | sort
    ss -Hltnx | sed 's/.*\(LISTEN\) *[0-9]* *[0-9]* *\([^ ]*\).*/\1 \2/' | sort
    pgrep --list-full callgate || true
"#;

/// What lies in the files. Left out: copies of the user database that its tools make before they change it (`passwd-`), what
/// dpkg keeps and logs, and what systemd remembers of boots and timers.
const CONTENTS: &str = r#"
    find /etc /usr /var -xdev \( -path /var/cache -o -path /var/lib/dpkg -o -path /var/log -o -path /var/tmp \
        -o -path /var/lib/systemd -o -path '/etc/*-' \) -prune -o -type f -exec sha256sum {} + | sort -k2
"#;

/// What the kernel has for this container: cgroups, pins, programs on its cgroups (by name: numbers are given anew), mounts,
/// links, addresses, routes, rules, IPsec and packet filters, and the settings of its network namespace.
const KERNEL: &str = r#"
    find /sys/fs/cgroup -name '*callgate*' | sort
    find /sys/fs/bpf | sort
    findmnt --noheadings --list --output TARGET,SOURCE,FSTYPE,OPTIONS
    ip -details link; ip address; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all
    ip xfrm policy; ip xfrm state
    cat /proc/net/ip_tables_names /proc/net/ip6_tables_names 2>&1
    find /proc/sys/net -type f -readable -not -name nf_conntrack_count -exec grep -H . {} + 2>/dev/null | sort
"#;

/// What systemd has loaded of its tree.
const SLICES: &str = r#"
    systemctl list-units --all --plain --no-legend --type=slice | sort
    systemctl list-units --all --plain --no-legend '*callgate*' | sort
    systemctl --failed --plain --no-legend
"#;

/// All of that, with the programs on the container's cgroups, which only the machine's own bpftool sees all of.
fn look(bed: &Bed) -> Result<String> {
    let scripts = [FILES, CONTENTS, KERNEL, SLICES].map(|script| bed.sh(script));
    let mut all = scripts
        .into_iter()
        .map(|told| told?.ok())
        .collect::<Result<String>>()?;
    for program in programs(bed)? {
        all += &program;
    }
    Ok(all)
}

/// Cgroup, hook and name of each; their numbers are given anew each time.
fn programs(bed: &Bed) -> Result<Vec<String>> {
    let root = bed.cgroup();
    let mut command = Command::new("bpftool");
    command.args(["--json", "cgroup", "tree"]).arg(&root);
    let tree: Value = serde_json::from_str(&launch::finish(command)?.ok()?)?;
    let of_group = |group: &Value| {
        let path = Path::new(group["cgroup"].as_str()?);
        let path = path.strip_prefix(&root).ok()?.to_owned();
        let programs = group["programs"].as_array()?.clone();
        let named = move |one: Value| format!("{} {} {}\n", path.display(), one["attach_type"], one["name"]);
        Some(programs.into_iter().map(named))
    };
    let groups = tree.as_array().context("no list")?;
    Ok(groups.iter().filter_map(of_group).flatten().collect())
}

/// A host as it was, and then with the package and a unit that it manages, which has called and runs.
fn managing() -> Result<(Bed, String)> {
    let mut world = World::new()?;
    world.upstream(Upstream::new("api.example.test").bearer("s3cret", "acme"))?;
    let bed = Bed::boot(world)?;
    bed.unit(
        "billing.service",
        "[Service]\nType=oneshot\nRemainAfterExit=yes\nUser=nobody\nExecStart=curl -sS https://api.example.test/v1/charges\nExecStart=sh -c 'sleep 600 &'\n",
    )?;
    let before = look(&bed)?;
    bed.install(&bed::package()?)?;
    bed.secret("api", "s3cret")?;
    bed.policy(POLICY)?;
    bed.run(["callgate", "enable", "--workload", "billing", "billing"])?
        .ok()?;
    bed.systemctl(&["start", "billing"])?.ok()?;
    assert_record!(bed, "unit" = "billing.service", "status" = 200);
    Ok((bed, before))
}

#[test]
fn a_purge_leaves_the_host_as_it_was() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let (bed, before) = managing()?;
    let during = look(&bed)?;
    for made in [
        "/usr/bin/callgate",
        "callgate-billing.slice",
        "/sys/fs/bpf/callgate/links",
        "\ncallgate:",
        "billing.service.d/50-callgate.conf",
        "callgate.slice/callgate-billing.slice \"cgroup_inet4_connect\"",
        "  /usr/bin/callgate\n",
        "\n/proc/sys/net/ipv4/ip_forward:",
        "/callgate.service \"cgroup_sock_ops\"",
    ] {
        assert!(during.contains(made), "{made} is not there");
    }
    let purged = bed.run(["dpkg", "--purge", "callgate"])?.ok()?;
    for told in [
        "billing.service is managed no more",
        "billing: its processes run on",
    ] {
        assert!(purged.contains(told), "{purged}");
    }
    // As it would run without us.
    bed.systemctl(&["restart", "billing"])?.ok()?;
    assert_eq!(bed.property("billing.service", "Slice")?, "system.slice");
    // systemd keeps a slice that a unit was in; without us it is one like any other.
    bed.systemctl(&["stop", "billing", "callgate.slice"])?.ok()?;
    assert_eq!(difference(&before, &look(&bed)?), Vec::<String>::new());
    // Who was a managed process is nobody's now.
    let direct = bed.run([
        "curl",
        "-sS",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
        "https://api.example.test/v1/charges",
    ])?;
    assert_eq!(direct.ok()?, "401");
    Ok(())
}

#[test]
fn a_purge_after_the_units_were_stopped_leaves_nothing_to_be_done_by_hand() -> Result<()> {
    require!(Root, CgroupV2, Btf, Bed);
    let (bed, before) = managing()?;
    bed.systemctl(&["stop", "billing"])?.ok()?;
    let purged = bed.run(["dpkg", "--purge", "callgate"])?.ok()?;
    assert!(purged.contains("billing.service is managed no more"), "{purged}");
    assert_eq!(difference(&before, &look(&bed)?), Vec::<String>::new());
    Ok(())
}
