//! The loader's read-only block, read so that neither compiler nor verifier takes its defaults for granted.
#![expect(
    unsafe_code,
    reason = "volatile reads of a static that the loader rewrites before the load"
)]

use callgate_common::KernelConfig;

#[unsafe(no_mangle)]
static CONFIG: KernelConfig = KernelConfig::CLOSED;

macro_rules! field {
    ($(#[doc = $doc:literal] $name:ident: $type:ty = $($path:ident).+;)+) => {$(
        #[doc = $doc]
        #[inline(always)]
        pub(crate) fn $name() -> $type {
            // SAFETY: a valid, aligned field of a static; the kernel froze the map before the first run.
            unsafe { core::ptr::read_volatile(&raw const CONFIG.$($path).+) }
        }
    )+};
}

field! {
    #[doc = "Device of the agent's pid namespace."]
    pidns_dev: u64 = pidns_dev;
    #[doc = "Inode of the agent's pid namespace."]
    pidns_ino: u64 = pidns_ino;
    #[doc = "Silence after which the agent counts as dead, in ns."]
    liveness_max_ns: u64 = liveness_max_ns;
    #[doc = "Ancestor level of workload cgroups; 0: search."]
    workload_level: u32 = workload_level;
    #[doc = "How pids are told."]
    pids: u32 = pids;
    #[doc = "task_struct.group_leader"]
    group_leader: u32 = offsets.group_leader;
    #[doc = "task_struct.start_boottime"]
    start_boottime: u32 = offsets.start_boottime;
    #[doc = "task_struct.self_exec_id"]
    self_exec_id: u32 = offsets.self_exec_id;
    #[doc = "task_struct.mm"]
    mm: u32 = offsets.mm;
    #[doc = "mm_struct.exe_file"]
    exe_file: u32 = offsets.exe_file;
    #[doc = "file.f_inode"]
    f_inode: u32 = offsets.f_inode;
    #[doc = "inode.i_ino"]
    i_ino: u32 = offsets.i_ino;
    #[doc = "inode.i_sb"]
    i_sb: u32 = offsets.i_sb;
    #[doc = "super_block.s_dev"]
    s_dev: u32 = offsets.s_dev;
    #[doc = "Size of self_exec_id."]
    exec_id_size: u32 = offsets.exec_id_size;
}
