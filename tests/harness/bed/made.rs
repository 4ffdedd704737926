//! What a bed is made of: its root, and the container that is started on it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

use super::Layout;
use crate::world::World;
use crate::{cgroup, launch};

const STORAGE: &[u8] = b"[storage]
driver = \"vfs\"
runroot = \"/run/containers/storage\"
graphroot = \"/var/lib/containers/storage\"
";

/// Mounts the container's root in the calling thread's mount namespace, which is the world's.
pub(super) fn overlay(world: &World, below: &Path) -> Result<PathBuf> {
    let place = world.dir().join("bed");
    let [upper, work, root] = ["upper", "work", "root"].map(|name| place.join(name));
    for dir in [&upper, &work, &root] {
        fs::create_dir_all(dir).with_context(|| format!("can't make {}", dir.display()))?;
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        below.display(),
        upper.display(),
        work.display()
    );
    mount(
        Some("bed"),
        &root,
        Some("overlay"),
        MsFlags::empty(),
        Some(options.as_str()),
    )
    .context("can't mount the container's root")?;
    Ok(root)
}

/// The upstreams' authority becomes one of the host's own.
pub(super) fn prepare(world: &World, root: &Path) -> Result<()> {
    let write = |path: &str, bytes: &[u8]| {
        fs::write(root.join(path), bytes).with_context(|| format!("can't write /{path} of the container"))
    };
    let authority = fs::read(world.authority()).context("can't read the test CA")?;
    let mut bundle =
        fs::read(root.join("etc/ssl/certs/ca-certificates.crt")).context("no ca-certificates")?;
    bundle.extend_from_slice(&authority);
    write("etc/ssl/certs/ca-certificates.crt", &bundle)?;
    write("usr/local/share/ca-certificates/outside.crt", &authority)?;
    // A test that wants systemd's resolver or Docker starts it; the first's link would have the file mounted in its directory.
    for part in [
        "etc/systemd/system/multi-user.target.wants/containerd.service",
        "etc/systemd/system/multi-user.target.wants/docker.service",
        "etc/systemd/system/sockets.target.wants/docker.socket",
        "etc/systemd/system/sysinit.target.wants/systemd-resolved.service",
        "etc/resolv.conf",
    ] {
        let path = root.join(part);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("can't remove {}", path.display()));
            }
            Ok(()) | Err(_) => {}
        }
    }
    if root.join("etc/containers").exists() {
        // podman's usual driver makes overlays, which can't lie on one.
        write("etc/containers/storage.conf", STORAGE)?;
        // systemd-nspawn refuses keyrings to all that its systemd starts.
        write(
            "etc/containers/containers.conf",
            b"[containers]\nkeyring = false\n",
        )?;
    }
    write("etc/resolv.conf", b"")?;
    write("etc/hostname", b"bed\n")?;
    write("etc/machine-id", b"")
}

pub(super) fn start(
    world: &World,
    root: &Path,
    group: &Path,
    console: &Path,
    layout: Layout,
) -> Result<Child> {
    let log = fs::File::options().append(true).create(true).open(console);
    let log = log.context("can't make the console's file")?;
    let errors = log.try_clone().context("can't share the console's file")?;
    let pins = world.dir().join("bpf");
    let place = launch::Place::in_cgroup(group);
    let place = match layout {
        Layout::Unified => place.with_env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1"),
        // What it does if it is told nothing.
        Layout::Hybrid => place,
    };
    let dir = |option: &str, path: &Path| format!("--{option}={}", path.display());
    let mut command = place.command([
        "systemd-nspawn".to_owned(),
        "--boot".to_owned(),
        "--quiet".to_owned(),
        "--register=no".to_owned(),
        "--keep-unit".to_owned(),
        "--console=read-only".to_owned(),
        "--machine=bed".to_owned(),
        // By its path it is the one of the thread that starts it.
        "--network-namespace-path=/proc/self/ns/net".to_owned(),
        "--resolv-conf=off".to_owned(),
        "--timezone=off".to_owned(),
        "--capability=all".to_owned(),
        "--system-call-filter=bpf perf_event_open pidfd_getfd".to_owned(),
        dir("directory", root),
        format!("--bind={}:/sys/fs/bpf", pins.display()),
        format!("--bind-ro={}:/etc/hosts", world.dir().join("hosts").display()),
        format!(
            "--bind-ro={}:/etc/resolv.conf",
            world.dir().join("resolv.conf").display()
        ),
    ]);
    command
        .stdout(log)
        .stderr(errors)
        .spawn()
        .context("can't start systemd-nspawn (package systemd-container)")
}

/// On a hybrid layout nspawn mirrors its cgroups in systemd's own hierarchy of version 1.
pub(super) fn remove_version_1(group: &Path) {
    let (Ok(mount), Some(version_1)) = (cgroup::mount_point(), cgroup::version_1_mount()) else {
        return;
    };
    let Ok(below) = group.strip_prefix(&mount) else {
        return;
    };
    let mirrored = version_1.join(below);
    // Of the world there is nothing else there.
    if let Some(world) = mirrored.parent().filter(|dir| dir.exists()) {
        cgroup::remove(world);
    }
}
