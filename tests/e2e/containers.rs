//! Containers that podman starts by systemd in the slice of a workload: served in their own network, under their own id, and
//! held like every other process in there.

/// The same by Docker.
mod docker;
/// Address translation in a container's network.
mod translated;

use anyhow::{Context as _, Result};
use harness::{Bed, Output, Record, Upstream, World, assert_record, require};

use crate::identity::{API, workload};
use crate::load::TOKEN;

const README: &str = include_str!("../../README.md");
/// What makes a container a part of the workload, as the README has it.
const MANAGED: &str = "--cgroup-parent=callgate-billing.slice --cap-drop=all --security-opt=no-new-privileges -v /run/callgate/trust:/run/callgate/trust:ro -e SSL_CERT_FILE=/run/callgate/trust/ca-bundle.pem";
/// What a unit that starts one says, as the README has it.
const UNIT: &[&str] = &[
    "[Unit]",
    "Wants=callgate.service",
    "After=callgate.service",
    "AssertPathExists=/run/callgate/armed/billing",
    "[Service]",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
];
/// The bed's own programs serve as the image, and this machine lacks controllers and the right to raise limits.
const HERE: &str =
    "--runtime=runc run --pids-limit=0 --ulimit=nofile=1024:1024 --ulimit=nproc=1024:1024 -v /usr:/usr:ro";
const ROOT: &str = "/opt/root";
/// A network of its own takes settings of the kernel's, which are read-only in the bed. These are of its network alone.
const PREPARE: &str = r#"set -e
mount --bind /proc/sys/net /proc/sys/net
mount -o remount,bind,rw /proc/sys/net
mkdir -p /opt/root && cd /opt/root
mkdir usr etc tmp proc sys dev run var
for link in bin lib lib64 sbin; do ln -s usr/$link $link; done"#;
/// Calls until it is answered: a container's first connection may be refused if it was not noticed while it started.
const PATIENT: &str = r#"n=0; until curl -sS -f -m 5 "$@"; do n=$((n+1)); [ $n -lt 50 ] || exit 9; sleep 0.1; done; echo " tries=$n""#;
/// What curl exits with when it could not connect.
const COULD_NOT_CONNECT: Option<i32> = Some(7);
const OTHER: &str = "other.example.test";

/// A host with podman, the agent, an API that wants a token, and another that no rule names.
fn host() -> Result<Bed> {
    let mut world = World::new()?;
    world.upstream(Upstream::new(API).bearer(TOKEN, "acme"))?;
    world.upstream(Upstream::new(OTHER))?;
    let bed = Bed::with_containers(world)?;
    bed.sh(PREPARE)?.ok()?;
    bed.secret("token", TOKEN)?;
    let credential = format!(
        "[credential.token]\nhosts = [\"{API}:443\"]\nscheme = \"bearer\"\nsource = {{ file = \"/etc/callgate/secrets/token\" }}\n"
    );
    bed.policy(&(workload("billing", "", "credential = \"token\"") + &credential))?;
    Ok(bed)
}

/// podman(1) with these options of `run`, and `args` run by the container's shell as `script`.
fn podman<'a>(options: &[&'a str], script: &'a str, args: &[&'a str]) -> Vec<&'a str> {
    let run = ["podman"].into_iter().chain(HERE.split(' '));
    run.chain(options.iter().copied())
        .chain(["--rootfs", ROOT, "/bin/sh", "-c", script, "sh"])
        .chain(args.iter().copied())
        .collect()
}

/// A managed one, which is gone when it ends.
fn managed<'a>(more: &[&'a str], script: &'a str, args: &[&'a str]) -> Vec<&'a str> {
    let options: Vec<_> = ["--rm"].into_iter().chain(MANAGED.split(' ')).collect();
    podman(&[&options, more].concat(), script, args)
}

/// A call that is not to be answered, to where the name really is and with no demands on the certificate.
fn direct(bed: &Bed, host: &str, path: &str) -> Result<[String; 3]> {
    let address = bed.world().server(host)?.v4().ip().to_string();
    Ok([
        "--resolve".into(),
        format!("{host}:443:{address}"),
        format!("https://{host}{path}"),
    ])
}

/// The paths that came to a server.
fn arrived(bed: &Bed, host: &str) -> Result<Vec<String>> {
    let lines = bed.world().server(host)?.log()?;
    Ok(lines.into_iter().map(|line| line.uri).collect())
}

/// At the first try or, if it was not noticed while it started, at the second.
fn is_served(reply: &Output) {
    let soon = ["tries=0\n", "tries=1\n"];
    assert!(soon.iter().any(|one| reply.stdout.ends_with(one)), "{reply:?}");
}

/// The record's container is the one that systemd started in the slice.
fn is_of_scope(record: &Record, id: &str) {
    assert_eq!(record.text("container"), id);
    assert_eq!(record.text("unit"), format!("libpod-{id}.scope"));
    let path = format!("/callgate.slice/callgate-billing.slice/libpod-{id}.scope");
    assert_eq!(record.text("cgroup.path"), path);
}

#[test]
fn a_container_in_a_network_of_its_own_is_served_under_its_id_and_nothing_goes_past_the_agent() -> Result<()>
{
    require!(Root, CgroupV2, Btf, Containers);
    let bed = host()?;
    let manager = bed.run(["podman", "info", "--format", "{{.Host.CgroupManager}}"])?;
    assert_eq!(manager.ok()?.trim(), "systemd");
    let url = format!("https://{API}/who");
    let reply = bed.run(managed(&["--cidfile=/run/billing.id"], PATIENT, &[&url]))?;
    is_served(&reply);
    let id = bed.run(["cat", "/run/billing.id"])?.ok()?;
    let record = assert_record!(bed, "path" = "/who", "status" = 200, "workload" = "billing");
    is_of_scope(&record, &id);

    // Such a network leads out: one that is not managed reaches what is refused to the other.
    let curl = r#"curl -sSk -m 5 -o /dev/null -w '%{http_code}' "$@""#;
    let [option, at, url] = direct(&bed, OTHER, "/who")?;
    let reply = bed.run(managed(&[], curl, &[&option, &at, &url]))?;
    assert!(["403", "000"].contains(&reply.stdout.as_str()), "{reply:?}");
    assert_eq!(arrived(&bed, OTHER)?, [""; 0]);
    let reply = bed.run(podman(&["--rm"], curl, &[&option, &at, &url]))?;
    assert_eq!(reply.stdout, "200", "{reply:?}");
    assert_eq!(arrived(&bed, OTHER)?, ["/who"]);
    Ok(())
}

#[test]
fn a_container_that_runs_while_the_agent_is_stopped_is_refused_like_one_that_is_started_then() -> Result<()> {
    require!(Root, CgroupV2, Btf, Containers);
    let bed = host()?;
    let [option, at, url] = direct(&bed, API, "/stopped")?;
    let curl = ["curl", "-sSk", "-m", "5", &option, &at, &url];
    bed.run(managed(&["--detach", "--name=long"], "sleep 600", &[]))?
        .ok()?;
    let inside = |args: &[&str]| bed.run(["podman", "exec", "long"].iter().chain(args));
    let served = |path: &str| {
        let url = format!("https://{API}{path}");
        inside(&["sh", "-c", PATIENT, "sh", &url])
    };
    is_served(&served("/before")?);
    bed.systemctl(&["stop", "callgate"])?.ok()?;
    assert_eq!(inside(&curl)?.code(), COULD_NOT_CONNECT);
    let fresh = bed.run(managed(&[], r#"exec "$@""#, &curl))?;
    assert_eq!(fresh.code(), COULD_NOT_CONNECT, "{fresh:?}");
    bed.systemctl(&["start", "callgate"])?.ok()?;
    is_served(&served("/after")?);
    assert_record!(bed, "path" = "/after", "workload" = "billing");
    assert_eq!(arrived(&bed, API)?, ["/before", "/after"]);
    Ok(())
}

#[test]
fn a_container_without_a_network_of_its_own_is_served_and_one_without_any_reaches_nothing() -> Result<()> {
    require!(Root, CgroupV2, Btf, Containers);
    let bed = host()?;
    let url = format!("https://{API}/host");
    is_served(&bed.run(managed(&["--network=host"], PATIENT, &[&url]))?);
    assert_record!(bed, "path" = "/host", "status" = 200, "workload" = "billing");
    // The agent takes the call, whose connection would leave from where the container is.
    let [option, at, url] = direct(&bed, API, "/none")?;
    let curl = r#"n=0; until curl -sS -m 5 -o /dev/null "$@" || [ $n = 50 ]; do n=$((n+1)); sleep 0.1; done"#;
    bed.run(managed(&["--network=none"], curl, &[&option, &at, &url]))?
        .ok()?;
    assert_record!(bed, "path" = "/none", "status" = 502, "outcome" = "failed");
    assert_eq!(arrived(&bed, API)?, ["/host"]);
    Ok(())
}

/// Makes sockets of the families that no hook of a cgroup sees, and uses none of them; says what came of each.
const UNSEEN: &str = r#"
import errno, socket
XDP = 44
for family, kind in (socket.AF_PACKET, socket.SOCK_RAW), (XDP, socket.SOCK_RAW), (socket.AF_VSOCK, socket.SOCK_STREAM):
    try:
        socket.socket(family, kind)
        print("made")
    except OSError as error:
        print(errno.errorcode[error.errno])
"#;

/// A unit with the README's lines, which starts a container with this script.
fn unit(bed: &Bed, script: &str) -> Result<()> {
    bed.write("/opt/script.sh", script)?;
    let start = managed(&["-v", "/opt:/opt:ro"], "exec sh /opt/script.sh", &[]);
    let quoted: Vec<_> = start.iter().map(|word| format!("'{word}'")).collect();
    let (lines, start) = (UNIT.join("\n"), quoted.join(" "));
    bed.unit(
        "box.service",
        &format!("{lines}\nType=oneshot\nExecStart={start}\n"),
    )
}

#[test]
fn a_unit_that_starts_a_container_as_the_readme_says_does_so_only_where_the_workload_is_held() -> Result<()> {
    require!(Root, CgroupV2, Btf, Containers);
    assert!(README.contains(&format!("podman run {MANAGED} ")), "{MANAGED}");
    let lines: Vec<&str> = README.lines().map(str::trim).collect();
    assert!(lines.windows(UNIT.len()).any(|some| some == UNIT), "{UNIT:?}");
    let bed = host()?;
    let script = format!("python3 -c '{UNSEEN}'\nset -- https://{API}/unit\n{PATIENT}");
    unit(&bed, &script)?;
    let started = bed.systemctl(&["start", "box.service"])?;
    let journal = bed.journal("box")?;
    started.ok().with_context(|| journal.clone())?;
    assert_record!(bed, "path" = "/unit", "status" = 200, "workload" = "billing");
    assert!(journal.contains(&"EAFNOSUPPORT\n".repeat(3)), "{journal}");

    // As after a boot without a working agent: nothing holds the slice.
    bed.systemctl(&["stop", "callgate"])?.ok()?;
    bed.sh(
        "rm -r /run/callgate /sys/fs/bpf/callgate; echo 'threads = \"many\"' >/etc/callgate/callgate.toml",
    )?
    .ok()?;
    let refused = bed.systemctl(&["start", "box.service"])?;
    assert!(refused.stderr.contains("Assertion failed"), "{refused:?}");
    assert_eq!(arrived(&bed, API)?, ["/unit"]);
    Ok(())
}

#[test]
fn a_container_that_is_started_by_hand_has_no_capabilities_for_packets_that_no_hook_sees() -> Result<()> {
    require!(Root, CgroupV2, Btf, Containers);
    let bed = host()?;
    let made = bed
        .run(managed(&[], r#"exec python3 -c "$1""#, &[UNSEEN]))?
        .ok()?;
    // Sockets of virtual machines take none: the README's unit is for those.
    assert!(made.starts_with("EPERM\nEPERM\n"), "{made}");
    Ok(())
}
