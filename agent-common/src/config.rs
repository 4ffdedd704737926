//! The read-only block that the loader fills before the programs are verified.

/// An offset that this kernel's type information does not give.
pub const MISSING: u32 = u32::MAX;

/// Take pids as they are: the agent lives in the initial pid namespace.
pub const PIDS_INITIAL: u32 = 0;
/// Translate pids into the agent's namespace with `bpf_get_ns_current_pid_tgid`.
pub const PIDS_TRANSLATED: u32 = 1;
/// Pids can't be told in the agent's namespace: leave them out.
pub const PIDS_ABSENT: u32 = 2;

/// Byte offsets within kernel structures, from `/sys/kernel/btf/vmlinux`; [`MISSING`] where not found.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TaskOffsets {
    /// `task_struct.group_leader`.
    pub group_leader: u32,
    /// `task_struct.start_boottime`.
    pub start_boottime: u32,
    /// `task_struct.self_exec_id`.
    pub self_exec_id: u32,
    /// `task_struct.mm`.
    pub mm: u32,
    /// `mm_struct.exe_file`.
    pub exe_file: u32,
    /// `file.f_inode`.
    pub f_inode: u32,
    /// `inode.i_ino`.
    pub i_ino: u32,
    /// `inode.i_sb`.
    pub i_sb: u32,
    /// `super_block.s_dev`.
    pub s_dev: u32,
    /// Bytes of `task_struct.self_exec_id`: 4 or 8.
    pub exec_id_size: u32,
}

impl TaskOffsets {
    /// Nothing known.
    pub const NONE: Self = Self {
        group_leader: MISSING,
        start_boottime: MISSING,
        self_exec_id: MISSING,
        mm: MISSING,
        exe_file: MISSING,
        f_inode: MISSING,
        i_ino: MISSING,
        i_sb: MISSING,
        s_dev: MISSING,
        exec_id_size: MISSING,
    };
}

/// What the programs need to know about this host.
#[repr(C)]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct KernelConfig {
    /// Device of the agent's pid namespace (`stat` of `/proc/self/ns/pid`).
    pub pidns_dev: u64,
    /// Inode of the agent's pid namespace.
    pub pidns_ino: u64,
    /// Nanoseconds after which a silent agent counts as dead.
    pub liveness_max_ns: u64,
    /// Ancestor level of a workload's cgroup (the root has 0); 0 means unknown: search.
    pub workload_level: u32,
    /// One of the `PIDS_` constants.
    pub pids: u32,
    /// Where the caller's facts lie.
    pub offsets: TaskOffsets,
}

impl KernelConfig {
    /// What an object holds that nobody configured: the agent counts as dead, so all is refused.
    pub const CLOSED: Self = Self {
        pidns_dev: 0,
        pidns_ino: 0,
        liveness_max_ns: 0,
        workload_level: 0,
        pids: PIDS_ABSENT,
        offsets: TaskOffsets::NONE,
    };
}
