//! What `exec` gives up before it becomes the command: descriptors, privileges, ways around the hooks.
//!
//! The cgroup's hooks see INET sockets alone. Packet, XDP and VM sockets pass them by, and so does a socket
//! or connection that came in as a descriptor.

use std::collections::BTreeMap;
use std::ffi::CString;

use anyhow::{Context, anyhow};
use caps::{CapSet, Capability};
use landlock::{
    AccessFs, CompatLevel, Compatible as _, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetStatus, Scope,
};
use nix::unistd::{Gid, Uid};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// The socket families that a managed process may use: those that the hooks see, and two that stay on the
/// host (netlink is how libc lists addresses).
const FAMILIES: &[i32] = &[libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// What a command that runs as root keeps. Everything else could undo its capture: other cgroups, namespaces,
/// programs, raw sockets, other processes' memory, devices.
const KEPT: &[Capability] = &[
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
    Capability::CAP_SYS_NICE,
    Capability::CAP_SYS_RESOURCE,
];

/// Calls that change mounts, enter namespaces, load programs or modules, or reach files by handle. They fail
/// with EPERM, also in a user namespace that the command makes for itself.
const REFUSED: &[i64] = &[
    libc::SYS_bpf,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pivot_root,
    libc::SYS_setns,
    libc::SYS_umount2,
];

/// x32 system calls have the same architecture word as x86-64's, and this bit (asm/unistd.h).
#[cfg(target_arch = "x86_64")]
const X32_BIT: i64 = 0x4000_0000;

/// A user of the host, with all that a login would set.
#[derive(Debug)]
pub(super) struct User {
    name: CString,
    uid: Uid,
    gid: Gid,
    home: String,
    shell: String,
}

impl User {
    /// By name or number.
    pub(super) fn find(text: &str) -> anyhow::Result<Self> {
        let by_name = nix::unistd::User::from_name(text).context("can't read the user database")?;
        let found = match (by_name, text.parse::<u32>()) {
            (Some(user), _) => Some(user),
            (None, Ok(uid)) => {
                nix::unistd::User::from_uid(Uid::from_raw(uid)).context("can't read the user database")?
            }
            (None, Err(_)) => None,
        };
        let user = found.ok_or_else(|| anyhow!("there is no user {text:?} on this host"))?;
        Ok(Self {
            name: CString::new(user.name).context("the user's name holds a NUL byte")?,
            uid: user.uid,
            gid: user.gid,
            home: user.dir.to_string_lossy().into_owned(),
            shell: user.shell.to_string_lossy().into_owned(),
        })
    }

    /// Groups first: afterwards there is no right to change them.
    pub(super) fn become_it(&self) -> anyhow::Result<()> {
        let hint = "only root can run a command as another user";
        nix::unistd::initgroups(&self.name, self.gid).context(hint)?;
        nix::unistd::setresgid(self.gid, self.gid, self.gid).context(hint)?;
        nix::unistd::setresuid(self.uid, self.uid, self.uid).context(hint)?;
        Ok(())
    }

    pub(super) fn env(&self) -> [(&'static str, String); 4] {
        let name = self.name.to_string_lossy().into_owned();
        [
            ("HOME", self.home.clone()),
            ("LOGNAME", name.clone()),
            ("SHELL", self.shell.clone()),
            ("USER", name),
        ]
    }
}

/// Closes everything but standard input, output and error. Call it right before exec: descriptors that the
/// program's own objects stand for are closed too.
pub(super) fn close_descriptors() -> anyhow::Result<()> {
    let mut open = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let number = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok());
        open.extend(number.filter(|number| *number > 2));
    }
    for number in open {
        match nix::unistd::close(number) {
            // The directory's own descriptor was in the list and is closed by now.
            Ok(()) | Err(nix::errno::Errno::EBADF) => {}
            Err(errno) => return Err(errno).with_context(|| format!("descriptor {number}")),
        }
    }
    Ok(())
}

/// Gives up capabilities and the way back to them, and lets the kernel refuse sockets that no hook sees.
pub(super) fn confine() -> anyhow::Result<()> {
    give_up_capabilities().context("can't give up capabilities")?;
    nix::sys::prctl::set_no_new_privs().context("can't set no_new_privs")?;
    enter_domain().context("the kernel has no usable Landlock (Linux 5.19, `landlock` in its lsm= list)")?;
    for filter in filters().context("can't make the system call filter")? {
        seccompiler::apply_filter(&filter)
            .context("the kernel refuses the system call filter (CONFIG_SECCOMP_FILTER)")?;
    }
    Ok(())
}

fn give_up_capabilities() -> anyhow::Result<()> {
    caps::clear(None, CapSet::Ambient)?;
    let may_change_bounds = caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)?;
    for capability in caps::all().iter().filter(|one| !KEPT.contains(one)) {
        if may_change_bounds && caps::has_cap(None, CapSet::Bounding, *capability)? {
            caps::drop(None, CapSet::Bounding, *capability)?;
        }
    }
    for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        let mut held = caps::read(None, set)?;
        held.retain(|capability| KEPT.contains(capability));
        caps::set(None, set, &held)?;
    }
    Ok(())
}

/// A Landlock domain of the command's own: a process in it can't look into or steer one that is not (ptrace,
/// `/proc/PID/root`, `/proc/PID/mem`, pidfd_getfd), whoever owns that, and can't change mounts. From Linux 6.12
/// on it can't signal one either, nor connect to its abstract sockets.
///
/// A domain must deny something: it is making block devices. Renaming between directories has to be allowed in
/// so many words.
fn enter_domain() -> anyhow::Result<()> {
    let entered = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::MakeBlock | AccessFs::Refer)?
        .set_compatibility(CompatLevel::BestEffort)
        .scope(Scope::Signal | Scope::AbstractUnixSocket)?
        .create()?
        .add_rule(PathBeneath::new(PathFd::new("/")?, AccessFs::Refer))?
        .restrict_self()?;
    if entered.ruleset == RulesetStatus::NotEnforced {
        return Err(anyhow!("the domain is not enforced"));
    }
    Ok(())
}

/// One filter for each error number; the kernel asks all and takes the strictest answer.
///
/// socket(2) of other families fails as if the kernel didn't have them; io_uring, which makes sockets out of
/// a filter's sight, as if the kernel were older.
fn filters() -> anyhow::Result<[BpfProgram; 3]> {
    let strange = FAMILIES
        .iter()
        .map(|family| {
            let family = u64::try_from(*family)?;
            Ok(SeccompCondition::new(
                0,
                SeccompCmpArgLen::Dword,
                SeccompCmpOp::Ne,
                family,
            )?)
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let families = BTreeMap::from([(libc::SYS_socket, vec![SeccompRule::new(strange)?])]);
    let mut absent = BTreeMap::from([
        (libc::SYS_io_uring_setup, Vec::new()),
        (libc::SYS_io_uring_enter, Vec::new()),
        (libc::SYS_io_uring_register, Vec::new()),
    ]);
    let mut refused: BTreeMap<_, _> = REFUSED.iter().map(|call| (*call, Vec::new())).collect();
    #[cfg(target_arch = "x86_64")]
    refused.extend(REFUSED.iter().map(|call| (X32_BIT | *call, Vec::new())));
    #[cfg(target_arch = "x86_64")]
    absent.extend([
        (X32_BIT | libc::SYS_socket, Vec::new()),
        (X32_BIT | libc::SYS_io_uring_setup, Vec::new()),
    ]);
    Ok([
        compile(families, libc::EAFNOSUPPORT)?,
        compile(absent, libc::ENOSYS)?,
        compile(refused, libc::EPERM)?,
    ])
}

fn compile(rules: BTreeMap<i64, Vec<SeccompRule>>, error: i32) -> anyhow::Result<BpfProgram> {
    let refuse = SeccompAction::Errno(u32::try_from(error)?);
    let architecture = std::env::consts::ARCH.try_into()?;
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, refuse, architecture)?.try_into()?)
}
