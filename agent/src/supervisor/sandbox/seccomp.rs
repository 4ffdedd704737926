//! The worker's system calls: an allow-list; anything else kills the process.
//!
//! Killing, and not an error code: the list is what the worker needs, so anything else is either a bug that
//! has to be seen or somebody else's code. The kernel logs the call's number (`audit: type=1326`). Two groups are
//! answered with an error instead, because libraries probe them and have a way without: `clone3` (its flags
//! lie in memory that a filter can't read; libc falls back to `clone`, whose flags it can) and everything
//! that opens or looks up a path.
//!
//! What the list keeps out although the descriptors would permit it: new listeners, cutting or overwriting
//! the audit file (`ftruncate`, clearing `O_APPEND`), executable memory, BPF beyond reading and writing entries.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// The filter could not be built or installed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The compiler refused the table.
    #[error("building the system call filter: {source}")]
    Build {
        /// Why.
        #[from]
        source: BackendError,
    },
    /// The kernel refused the filter.
    #[error("installing the system call filter: {source}")]
    Install {
        /// Why.
        #[from]
        source: seccompiler::Error,
    },
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

const BPF_MAP_LOOKUP_ELEM: u64 = 1;
const BPF_MAP_UPDATE_ELEM: u64 = 2;
const BPF_OBJ_GET_INFO_BY_FD: u64 = 15;

/// Installs the filters for every thread. no_new_privs has to be set.
///
/// # Errors
/// If the kernel has no seccomp filters.
pub fn install() -> Result<(), Error> {
    let absent = program(absent(), SeccompAction::Allow, errno(libc::ENOSYS))?;
    let refused = program(refused()?, SeccompAction::Allow, errno(libc::EACCES))?;
    let allowed = program(allowed()?, SeccompAction::KillProcess, SeccompAction::Allow)?;
    // The kernel takes the strictest answer of all filters, so the allow-list may hold the others' calls.
    for program in [absent, refused, allowed] {
        seccompiler::apply_filter_all_threads(&program)?;
    }
    Ok(())
}

fn errno(code: i32) -> SeccompAction {
    SeccompAction::Errno(code.unsigned_abs())
}

fn program(rules: Rules, otherwise: SeccompAction, matched: SeccompAction) -> Result<BpfProgram, Error> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let filter = SeccompFilter::new(rules, otherwise, matched, arch)?;
    Ok(filter.try_into()?)
}

fn absent() -> Rules {
    Rules::from([(libc::SYS_clone3, Vec::new())])
}

/// Path look-ups, and the fcntl that could take `O_APPEND` off the audit file.
fn refused() -> Result<Rules, Error> {
    let mut rules = Rules::new();
    for call in [
        libc::SYS_openat,
        libc::SYS_openat2,
        libc::SYS_readlinkat,
        libc::SYS_faccessat,
        libc::SYS_faccessat2,
    ] {
        rules.insert(call, Vec::new());
    }
    #[cfg(target_arch = "x86_64")]
    for call in [
        libc::SYS_open,
        libc::SYS_readlink,
        libc::SYS_access,
        libc::SYS_stat,
        libc::SYS_lstat,
    ] {
        rules.insert(call, Vec::new());
    }
    let empty_path = SeccompCmpOp::MaskedEq(flag(libc::AT_EMPTY_PATH));
    rules.insert(libc::SYS_newfstatat, vec![rule(&[(3, empty_path.clone(), 0)])?]);
    rules.insert(libc::SYS_statx, vec![rule(&[(2, empty_path, 0)])?]);
    rules.insert(
        libc::SYS_fcntl,
        vec![rule(&[(1, SeccompCmpOp::Eq, flag(libc::F_SETFL))])?],
    );
    Ok(rules)
}

fn allowed() -> Result<Rules, Error> {
    let mut rules = refused()?;
    rules.extend(absent());
    for call in UNCONDITIONAL {
        rules.insert(*call, Vec::new());
    }
    #[cfg(target_arch = "x86_64")]
    for call in [libc::SYS_poll, libc::SYS_epoll_wait, libc::SYS_alarm] {
        rules.insert(call, Vec::new());
    }
    for call in [libc::SYS_newfstatat, libc::SYS_statx] {
        rules.insert(call, Vec::new());
    }
    for (call, argument, values) in by_value() {
        let one_of: Result<Vec<_>, _> = values
            .iter()
            .map(|value| rule(&[(argument, SeccompCmpOp::Eq, *value)]))
            .collect();
        rules.insert(call, one_of?);
    }
    rules.insert(libc::SYS_socket, sockets()?);
    let thread = flag(libc::CLONE_THREAD);
    rules.insert(
        libc::SYS_clone,
        vec![rule(&[(0, SeccompCmpOp::MaskedEq(thread), thread)])?],
    );
    let executable = SeccompCmpOp::MaskedEq(flag(libc::PROT_EXEC));
    rules.insert(libc::SYS_mmap, vec![rule(&[(2, executable.clone(), 0)])?]);
    rules.insert(libc::SYS_mprotect, vec![rule(&[(2, executable, 0)])?]);
    Ok(rules)
}

/// Calls of which one argument has to be one of some values.
fn by_value() -> [(i64, u8, Vec<u64>); 9] {
    let own = u64::from(std::process::id());
    [
        (
            libc::SYS_bpf,
            0,
            vec![BPF_MAP_LOOKUP_ELEM, BPF_MAP_UPDATE_ELEM, BPF_OBJ_GET_INFO_BY_FD],
        ),
        (libc::SYS_socketpair, 0, vec![flag(libc::AF_UNIX)]),
        (
            libc::SYS_ioctl,
            1,
            vec![libc::FIONBIO, libc::FIONREAD, libc::TCGETS],
        ),
        (
            libc::SYS_fcntl,
            1,
            [
                libc::F_GETFD,
                libc::F_SETFD,
                libc::F_GETFL,
                libc::F_SETFL,
                libc::F_DUPFD_CLOEXEC,
                libc::F_GETPIPE_SZ,
                libc::F_SETPIPE_SZ,
            ]
            .map(flag)
            .to_vec(),
        ),
        (
            libc::SYS_prctl,
            0,
            vec![flag(libc::PR_SET_NAME), flag(libc::PR_SET_VMA)],
        ),
        // Only asking: libc reads the stack's limit when a thread starts.
        (libc::SYS_prlimit64, 2, vec![0]),
        // abort() raises a signal in its own process.
        (libc::SYS_tgkill, 0, vec![own]),
        (libc::SYS_fallocate, 1, vec![0, flag(libc::FALLOC_FL_KEEP_SIZE)]),
        (libc::SYS_madvise, 2, advice()),
    ]
}

fn advice() -> Vec<u64> {
    [
        libc::MADV_NORMAL,
        libc::MADV_WILLNEED,
        libc::MADV_DONTNEED,
        libc::MADV_FREE,
        libc::MADV_HUGEPAGE,
        libc::MADV_NOHUGEPAGE,
        libc::MADV_DONTDUMP,
        libc::MADV_WIPEONFORK,
    ]
    .map(flag)
    .into_iter()
    // aws-lc asks for advice that can't be, to see whether the kernel's answers mean something.
    .chain([u64::from(u32::MAX)])
    .collect()
}

/// TCP and UDP over IP; nothing else leads out of the host.
fn sockets() -> Result<Vec<SeccompRule>, Error> {
    let kind = SeccompCmpOp::MaskedEq(0xf);
    let mut rules = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        for stream_or_datagram in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
            rules.push(rule(&[
                (0, SeccompCmpOp::Eq, flag(family)),
                (1, kind.clone(), flag(stream_or_datagram)),
            ])?);
        }
    }
    Ok(rules)
}

fn rule(conditions: &[(u8, SeccompCmpOp, u64)]) -> Result<SeccompRule, Error> {
    let conditions: Result<Vec<_>, _> = conditions
        .iter()
        .map(|(argument, op, value)| {
            SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, op.clone(), *value)
        })
        .collect();
    Ok(SeccompRule::new(conditions?)?)
}

/// A C constant as the filter compares it: all of them are small and positive.
fn flag(value: i32) -> u64 {
    u64::from(value.unsigned_abs())
}

const UNCONDITIONAL: &[i64] = &[
    // The audit file, which the supervisor appends to as well.
    libc::SYS_flock,
    // Sockets that exist.
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    // Descriptors that exist; tunnels are spliced through pipes.
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fdatasync,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_lseek,
    libc::SYS_pipe2,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_splice,
    libc::SYS_write,
    libc::SYS_writev,
    // Waiting.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_futex,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_ppoll,
    libc::SYS_restart_syscall,
    libc::SYS_sched_yield,
    // A worker that goes on alone sets itself a term.
    libc::SYS_setitimer,
    // Memory and threads.
    libc::SYS_brk,
    libc::SYS_membarrier,
    libc::SYS_mremap,
    libc::SYS_msync,
    libc::SYS_munmap,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    // About itself.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_getcpu,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_sysinfo,
    libc::SYS_uname,
];
