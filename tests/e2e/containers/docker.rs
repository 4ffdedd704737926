//! Containers that Docker starts in the slice of a workload: as Podman's, and by their names too, which Docker's own server
//! answers in networks that a user made.

use anyhow::{Context as _, Result};
use harness::{Bed, assert_record, require};

use super::{MANAGED, OTHER, PATIENT, README, UNIT, UNSEEN, arrived, direct, host, is_served};
use crate::identity::API;

/// The root that `host` made becomes the image. systemd-nspawn refuses keyrings to all that its systemd starts, and Docker
/// has no setting for that.
const PREPARE: &str = r#"set -e
cat >/opt/runc <<'END'
#!/bin/sh
for word; do
    shift
    set -- "$@" "$word"
    [ "$word" != create ] || set -- "$@" --no-new-keyring
done
exec /usr/bin/runc "$@"
END
chmod +x /opt/runc
mkdir -p /etc/docker
cat >/etc/docker/daemon.json <<'END'
{"runtimes": {"here": {"path": "/opt/runc"}}, "default-runtime": "here", "storage-driver": "vfs"}
END
mkdir -p /etc/systemd/system/containerd.service.d
printf '%s\n' "$@" >/etc/systemd/system/containerd.service.d/callgate.conf
systemctl daemon-reload
systemctl start docker.service
tar -C /opt/root -c . | docker import - box"#;

fn docker<'a>(options: &[&'a str], script: &'a str, args: &[&'a str]) -> Vec<&'a str> {
    let run = ["docker", "run", "--rm", "-v", "/usr:/usr:ro"].into_iter();
    run.chain(options.iter().copied())
        .chain(["box", "/bin/sh", "-c", script, "sh"])
        .chain(args.iter().copied())
        .collect()
}

fn managed<'a>(more: &[&'a str], script: &'a str, args: &[&'a str]) -> Vec<&'a str> {
    let options: Vec<_> = MANAGED.split(' ').chain(more.iter().copied()).collect();
    docker(&options, script, args)
}

fn with_docker() -> Result<Bed> {
    let bed = host()?;
    let families = UNIT.last().context("no line")?;
    bed.run(["sh", "-c", PREPARE, "sh", "[Service]", families])?
        .ok()?;
    Ok(bed)
}

#[test]
fn a_container_of_dockers_is_served_under_its_id_and_nothing_goes_past_the_agent() -> Result<()> {
    require!(Root, CgroupV2, Btf, Containers);
    assert!(README.contains("`docker run` takes the same options"));
    let bed = with_docker()?;
    let driver = bed.run(["docker", "info", "--format", "{{.CgroupDriver}}"])?;
    assert_eq!(driver.ok()?.trim(), "systemd");
    let url = format!("https://{API}/who");
    is_served(&bed.run(managed(&["--cidfile=/run/billing.id"], PATIENT, &[&url]))?);
    let id = bed.run(["cat", "/run/billing.id"])?.ok()?;
    let record = assert_record!(bed, "path" = "/who", "status" = 200, "workload" = "billing");
    assert_eq!(record.text("container"), id);
    assert_eq!(record.text("unit"), format!("docker-{id}.scope"));
    let path = format!("/callgate.slice/callgate-billing.slice/docker-{id}.scope");
    assert_eq!(record.text("cgroup.path"), path);

    // Such a network leads out: one that is not managed reaches what is refused to the other.
    let curl = r#"curl -sSk -m 5 -o /dev/null -w '%{http_code}' "$@""#;
    let [option, at, url] = direct(&bed, OTHER, "/who")?;
    let reply = bed.run(managed(&[], curl, &[&option, &at, &url]))?;
    assert!(["403", "000"].contains(&reply.stdout.as_str()), "{reply:?}");
    assert_eq!(arrived(&bed, OTHER)?, [""; 0]);
    let reply = bed.run(docker(&[], curl, &[&option, &at, &url]))?;
    assert_eq!(reply.stdout, "200", "{reply:?}");
    assert_eq!(arrived(&bed, OTHER)?, ["/who"]);
    Ok(())
}

#[test]
fn dockers_own_name_server_is_not_asked_and_sockets_that_no_hook_sees_are_not_made() -> Result<()> {
    require!(Root, CgroupV2, Btf, Containers);
    let bed = with_docker()?;
    bed.run(["docker", "network", "create", "own"])?.ok()?;
    let made = bed
        .run(managed(&[], r#"exec python3 -c "$1""#, &[UNSEEN]))?
        .ok()?;
    assert_eq!(made, "EAFNOSUPPORT\n".repeat(3));
    let servers = bed.run(managed(&["--network=own"], "cat /etc/resolv.conf", &[]))?;
    assert!(servers.ok()?.contains("nameserver 127.0.0.11\n"));
    let url = format!("https://{API}/own");
    is_served(&bed.run(managed(&["--network=own"], PATIENT, &[&url]))?);
    assert_record!(bed, "path" = "/own", "status" = 200, "workload" = "billing");
    let asked = managed(&["--network=own"], r#"getent hosts "$1""#, &[OTHER]);
    assert_eq!(
        bed.run(asked)?.code(),
        Some(2),
        "a name that no rule has is nobody's"
    );
    Ok(())
}
