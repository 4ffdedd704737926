//! What a managed process must not reach or keep, whichever way it came in: `callgate exec` takes it away itself,
//! `callgate enable` has systemd do it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::unistd::User;

use caps::Capability;

/// What a process that runs as root keeps. Everything else could undo its capture: other cgroups, namespaces,
/// programs, raw sockets, other processes' memory, limits and priorities, devices.
pub const KEPT: &[Capability] = &[
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_IPC_LOCK,
    Capability::CAP_KILL,
    Capability::CAP_LEASE,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
];

/// Services that start processes, type for others or reach the network for whoever asks, outside of every workload.
pub const SERVICES: &[&str] = &[
    "/run/avahi-daemon/socket",
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/cups/cups.sock",
    "/run/dbus/system_bus_socket",
    "/run/docker.sock",
    "/run/incus",
    "/run/initctl",
    "/run/libvirt",
    "/run/nscd/socket",
    "/run/podman/podman.sock",
    "/run/screen",
    "/run/snapd-snap.socket",
    "/run/snapd.socket",
    "/run/systemd/io.systemd.Import",
    "/run/systemd/io.systemd.Manager",
    "/run/systemd/machine",
    "/run/systemd/private",
    "/run/systemd/resolve/io.systemd.Resolve",
    "/run/udev/control",
    "/run/user",
    "/var/lib/incus/unix.socket",
    "/var/lib/lxd/unix.socket",
    "/var/snap/lxd/common/lxd/unix.socket",
];

/// Whether a path is one of [`SERVICES`].
#[must_use]
pub fn is_service(path: &Path) -> bool {
    SERVICES.iter().any(|service| Path::new(service) == path)
}

/// Where systemd keeps the credentials of this host's units.
pub const CREDENTIAL_STORES: &[&str] = &[
    "/etc/credstore",
    "/etc/credstore.encrypted",
    "/run/credstore",
    "/run/credstore.encrypted",
    "/usr/lib/credstore",
    "/usr/lib/credstore.encrypted",
];

/// Whom `callgate.service` runs as.
const AGENT_USER: &str = "callgate-agent";

/// Whether nobody but root, and the installed agent, may enter this directory, so that it can be hidden for the sake of a
/// file in it: a file alone comes to light again when it is replaced by a rename. Root's home stays, which programs look
/// into.
#[must_use]
pub fn is_roots_alone(directory: &Path) -> bool {
    let agent = User::from_name(AGENT_USER).ok().flatten();
    let users = [Some(0), agent.as_ref().map(|user| user.uid.as_raw())];
    let groups = [Some(0), agent.as_ref().map(|user| user.gid.as_raw())];
    directory != Path::new("/root")
        && fs::metadata(directory).is_ok_and(|found| {
            let open = if groups.contains(&Some(found.gid())) {
                0o007
            } else {
                0o077
            };
            users.contains(&Some(found.uid())) && found.mode() & open == 0
        })
}
