//! The system calls that `exec` takes from its command: ways around the hooks, out of the command's view, or into
//! processes that are not its own.
//!
//! A list of what is refused, since a command may be any program. Where libraries have a way without, a call is
//! answered as if the kernel were older (ENOSYS); where the call is for rights only, it is EPERM.

use std::collections::BTreeMap;

use anyhow::Context as _;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The socket families that a managed process may use: those that the hooks see, and two that stay on the
/// host (netlink is how libc lists addresses).
const FAMILIES: &[i32] = &[libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

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
    SYS_OPEN_TREE_ATTR,
    libc::SYS_perf_event_open,
    libc::SYS_pivot_root,
    libc::SYS_setns,
    libc::SYS_umount2,
];

/// Linux 6.15, the same number on every architecture.
const SYS_OPEN_TREE_ATTR: i64 = 467;

/// Calls that every library can do without. io_uring makes sockets out of a filter's sight; a key request lets
/// the kernel start a helper as root, outside of every workload, that may ask the network for what it names; clone3
/// makes root's children in any cgroup that can be seen, also where it is read-only (CLONE_INTO_CGROUP), and has its
/// flags where no filter sees them.
const ABSENT: &[i64] = &[
    libc::SYS_add_key,
    libc::SYS_clone3,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_keyctl,
    libc::SYS_request_key,
];

/// Terminal requests that put input into its queue, for whoever reads it next: the shell that started `exec`.
/// The kernel looks at 32 bits of the request.
const TYPING: &[u64] = &[libc::TIOCSTI, libc::TIOCLINUX];

/// What sets another process's priority or processors, with the argument that must be 0, which is the caller.
/// They ask for the same user only.
const SCHEDULING: &[i64] = &[
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setattr,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setscheduler,
];
const PRIO_PROCESS: u64 = 0;
/// include/uapi/linux/ioprio.h
const IOPRIO_WHO_PROCESS: u64 = 1;

/// Lets the kernel refuse the calls, from here on and in all children. no_new_privs has to be set.
///
/// Root's commands can't set another process's scheduling, the agent's being of the same user. Other users' can:
/// libraries set it thread by thread, and these calls do not tell a thread of the caller from another process.
pub(super) fn restrict(root: bool) -> anyhow::Result<()> {
    for filter in filters(root).context("can't make the system call filter")? {
        seccompiler::apply_filter(&filter)
            .context("the kernel refuses the system call filter (CONFIG_SECCOMP_FILTER)")?;
    }
    Ok(())
}

/// One filter for each error number; the kernel asks all and takes the strictest answer.
fn filters(root: bool) -> anyhow::Result<Vec<BpfProgram>> {
    let strange = FAMILIES
        .iter()
        .map(|family| differs(0, u64::try_from(*family)?))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let families = Rules::from([(libc::SYS_socket, vec![SeccompRule::new(strange)?])]);
    let absent = ABSENT.iter().map(|call| (*call, Vec::new())).collect();
    let mut refused: Rules = REFUSED.iter().map(|call| (*call, Vec::new())).collect();
    refused.extend(refused_by_argument()?);
    if root {
        refused.extend(refused_to_root()?);
    }
    Ok(vec![
        #[cfg(target_arch = "x86_64")]
        x32::refusal(),
        compile(families, libc::EAFNOSUPPORT)?,
        compile(absent, libc::ENOSYS)?,
        compile(refused, libc::EPERM)?,
    ])
}

fn refused_by_argument() -> anyhow::Result<Rules> {
    let typing = TYPING
        .iter()
        .map(|request| rule([equals(1, *request)?]))
        .collect::<anyhow::Result<Vec<_>>>()?;
    // A process that may set its memory map's executable would take the rights of rules with `exe`.
    let memory_map = rule([equals(0, u64::try_from(libc::PR_SET_MM)?)?])?;
    // Reading another's limits is harmless.
    let new_limit = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Ne, 0)?;
    let limits_of_others = rule([differs(0, 0)?, new_limit])?;
    Ok(Rules::from([
        (libc::SYS_ioctl, typing),
        (libc::SYS_prctl, vec![memory_map]),
        (libc::SYS_prlimit64, vec![limits_of_others]),
    ]))
}

fn refused_to_root() -> anyhow::Result<Rules> {
    let mut rules = Rules::new();
    for call in SCHEDULING {
        rules.insert(*call, vec![rule([differs(0, 0)?])?]);
    }
    for (call, process) in [
        (libc::SYS_setpriority, PRIO_PROCESS),
        (libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS),
    ] {
        // Of a group or a user, "the caller's" too are others'.
        let others = vec![rule([differs(0, process)?])?, rule([differs(1, 0)?])?];
        rules.insert(call, others);
    }
    Ok(rules)
}

fn rule<const N: usize>(conditions: [SeccompCondition; N]) -> anyhow::Result<SeccompRule> {
    Ok(SeccompRule::new(conditions.into())?)
}

fn equals(argument: u8, value: u64) -> anyhow::Result<SeccompCondition> {
    compare(argument, SeccompCmpOp::Eq, value)
}

fn differs(argument: u8, value: u64) -> anyhow::Result<SeccompCondition> {
    compare(argument, SeccompCmpOp::Ne, value)
}

/// Arguments that are `int` in the kernel: the upper half of the register means nothing.
fn compare(argument: u8, how: SeccompCmpOp, value: u64) -> anyhow::Result<SeccompCondition> {
    Ok(SeccompCondition::new(
        argument,
        SeccompCmpArgLen::Dword,
        how,
        value,
    )?)
}

fn compile(rules: Rules, error: i32) -> anyhow::Result<BpfProgram> {
    let refuse = SeccompAction::Errno(u32::try_from(error)?);
    let architecture = std::env::consts::ARCH.try_into()?;
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, refuse, architecture)?.try_into()?)
}

/// x32, x86-64's second set of system calls. It has the same architecture word, so that the other filters'
/// numbers would not meet it; nothing needs it, so all of it is refused.
#[cfg(target_arch = "x86_64")]
mod x32 {
    use seccompiler::{BpfProgram, sock_filter};

    /// `__X32_SYSCALL_BIT` (asm/unistd.h).
    const BIT: u32 = 0x4000_0000;
    /// classic BPF: load a word of `struct seccomp_data`, jump if at least, return.
    const LOAD: u16 = 0x20;
    const JUMP_IF_AT_LEAST: u16 = 0x35;
    const RETURN: u16 = 0x06;

    pub(super) fn refusal() -> BpfProgram {
        let step = |code, jt, k| sock_filter { code, jt, jf: 0, k };
        let absent = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();
        vec![
            // The number is the first word.
            step(LOAD, 0, 0),
            step(JUMP_IF_AT_LEAST, 1, BIT),
            step(RETURN, 0, libc::SECCOMP_RET_ALLOW),
            step(RETURN, 0, absent),
        ]
    }
}
