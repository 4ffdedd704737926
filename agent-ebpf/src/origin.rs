//! Who is calling: task, executable, cgroup, taken in the caller's own context.
#![expect(
    unsafe_code,
    reason = "kernel memory is read by address, and origins are filled in place"
)]

use core::ffi::c_void;

use aya_ebpf::helpers::generated as helpers;
use callgate_common::Origin;
use callgate_common::config::{MISSING, PIDS_ABSENT, PIDS_TRANSLATED};
use callgate_common::origin::present;

use crate::ctx::SockAddr;
use crate::{config, maps, storage};

/// Takes the caller's facts into the socket's storage; false when memory is short.
#[inline(always)]
pub(crate) fn keep<const V6: bool>(ctx: &SockAddr<V6>, workload: u32) -> bool {
    let origin = storage::make(&maps::ORIGINS, ctx.sk(), core::ptr::null());
    if origin.is_null() {
        return false;
    }
    fill(origin, ctx, workload);
    true
}

/// Fills every byte of `origin`, which must be a whole writable [`Origin`].
#[inline(always)]
pub(crate) fn fill<const V6: bool>(origin: *mut Origin, ctx: &SockAddr<V6>, workload: u32) {
    // SAFETY: the caller gives a whole value.
    unsafe { origin.write(Origin::EMPTY) };
    // SAFETY: just written, and no other reference to it in this program.
    let origin = unsafe { &mut *origin };
    origin.workload = workload;
    origin.dst_addr = ctx.addr();
    origin.dst_port = ctx.port();
    origin.protocol = ctx.protocol() as u8;
    origin.socket_cookie = ctx.cookie();
    origin.netns_cookie = ctx.netns();
    caller(origin);
}

/// The facts that need no socket.
#[inline(always)]
pub(crate) fn caller(origin: &mut Origin) {
    // SAFETY: no pointers.
    origin.stamp = unsafe { helpers::bpf_ktime_get_boot_ns() };
    // SAFETY: no pointers.
    origin.cgroup_id = unsafe { helpers::bpf_get_current_cgroup_id() };
    // SAFETY: no pointers.
    let ids = unsafe { helpers::bpf_get_current_uid_gid() };
    origin.uid = ids as u32;
    origin.gid = (ids >> 32) as u32;
    // SAFETY: a buffer of the stated size.
    unsafe { helpers::bpf_get_current_comm(origin.comm.as_mut_ptr().cast(), 16) };
    origin.present |= present::CALLER;
    pids(origin);
    task(origin);
}

#[inline(always)]
fn pids(origin: &mut Origin) {
    let how = config::pids();
    if how == PIDS_ABSENT {
        return;
    }
    if how == PIDS_TRANSLATED {
        let mut ids = aya_ebpf::bindings::bpf_pidns_info { pid: 0, tgid: 0 };
        let (dev, ino) = (config::pidns_dev(), config::pidns_ino());
        // SAFETY: a buffer of the stated size.
        if unsafe { helpers::bpf_get_ns_current_pid_tgid(dev, ino, &raw mut ids, 8) } != 0 {
            return;
        }
        origin.tid = ids.pid;
        origin.tgid = ids.tgid;
    } else {
        // SAFETY: no pointers.
        let ids = unsafe { helpers::bpf_get_current_pid_tgid() };
        origin.tid = ids as u32;
        origin.tgid = (ids >> 32) as u32;
    }
    origin.present |= present::PID;
}

#[inline(always)]
fn task(origin: &mut Origin) {
    // SAFETY: no pointers.
    let task = unsafe { helpers::bpf_get_current_task() };
    if let Some(leader) = read::<u64>(task, config::group_leader())
        && let Some(start) = read::<u64>(leader, config::start_boottime())
    {
        origin.start_time = start;
        origin.present |= present::START_TIME;
    }
    let exec_id = if config::exec_id_size() == 8 {
        read::<u64>(task, config::self_exec_id())
    } else {
        read::<u32>(task, config::self_exec_id()).map(u64::from)
    };
    if let Some(exec_id) = exec_id {
        origin.exec_id = exec_id;
        origin.present |= present::EXEC_ID;
    }
    if let Some((dev, ino)) = executable(task) {
        origin.exe_dev = dev;
        origin.exe_ino = ino;
        origin.present |= present::EXE;
    }
}

#[inline(always)]
fn executable(task: u64) -> Option<(u32, u64)> {
    let mm = read::<u64>(task, config::mm())?;
    let file = read::<u64>(mm, config::exe_file())?;
    let inode = read::<u64>(file, config::f_inode())?;
    let ino = read::<u64>(inode, config::i_ino())?;
    let block = read::<u64>(inode, config::i_sb())?;
    Some((read::<u32>(block, config::s_dev())?, ino))
}

/// A value at `base + offset` in kernel memory; `None` for a missing offset, a null base or a fault.
#[inline(always)]
fn read<T: Copy + Default>(base: u64, offset: u32) -> Option<T> {
    if offset == MISSING || base == 0 {
        return None;
    }
    let mut value = T::default();
    let from = (base + u64::from(offset)) as *const c_void;
    // SAFETY: the helper checks the address itself and writes at most the stated size.
    let failed =
        unsafe { helpers::bpf_probe_read_kernel((&raw mut value).cast(), size_of::<T>() as u32, from) };
    if failed == 0 { Some(value) } else { None }
}
