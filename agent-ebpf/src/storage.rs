//! Socket storage: what is kept with a socket for as long as it lives.
#![expect(unsafe_code, reason = "helper calls and references into storage values")]

use core::ffi::c_void;

use aya_ebpf::bindings::bpf_map_type::BPF_MAP_TYPE_SK_STORAGE;
use aya_ebpf::bindings::{BPF_F_CLONE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE};
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::generated as helpers;
use callgate_common::{Origin, SocketMark};

/// Socket storage that an accepted socket takes over from its listener, which aya's own type can't say: a mark
/// stands on every socket that a workload made or accepted, so that one without it was made elsewhere.
#[repr(C)]
pub(crate) struct Marks {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const SocketMark,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize],
}

// SAFETY: pointers that only describe the map to the loader; nobody follows them.
unsafe impl Sync for Marks {}

impl Marks {
    /// What the loader makes the map from.
    pub(crate) const fn new() -> Self {
        Self {
            r#type: core::ptr::null(),
            key: core::ptr::null(),
            value: core::ptr::null(),
            max_entries: core::ptr::null(),
            map_flags: core::ptr::null(),
        }
    }
}

/// A socket storage map, and what it holds.
pub(crate) trait Storage: 'static {
    /// The value.
    type Value;
}

impl<T: 'static> Storage for SkStorage<T> {
    type Value = T;
}

impl Storage for Marks {
    type Value = SocketMark;
}

/// The socket's value in a storage map, or null.
#[inline(always)]
pub(crate) fn get<M: Storage>(map: &'static M, sk: *mut c_void) -> *mut M::Value {
    let map = core::ptr::from_ref(map).cast_mut().cast();
    // SAFETY: a storage map and a socket (or the context of a sock hook).
    unsafe { helpers::bpf_sk_storage_get(map, sk, core::ptr::null_mut(), 0) }.cast()
}

/// The socket's value in a storage map, made from `initial` (or zeroed, if null) when there is none; null
/// when memory is short. `initial` must be stack or map memory of a whole `T`.
#[inline(always)]
pub(crate) fn make<M: Storage>(map: &'static M, sk: *mut c_void, initial: *const M::Value) -> *mut M::Value {
    let map = core::ptr::from_ref(map).cast_mut().cast();
    // SAFETY: a storage map, a socket (or the context of a sock hook), and null or a whole value.
    unsafe {
        helpers::bpf_sk_storage_get(
            map,
            sk,
            initial.cast_mut().cast(),
            u64::from(BPF_SK_STORAGE_GET_F_CREATE),
        )
    }
    .cast()
}

/// The workload in a mark that is not null.
#[inline(always)]
pub(crate) fn marked_workload(mark: *mut SocketMark) -> u32 {
    // SAFETY: callers checked for null; the value lives as long as its socket.
    unsafe { (*mark).workload }
}

/// Writes into a mark that is not null where its socket was turned to; zeros for "nowhere".
#[inline(always)]
pub(crate) fn note_turn(mark: *mut SocketMark, addr: &[u8; 16], port: u16, turned_to: u16) {
    // SAFETY: callers checked for null; the value lives as long as its socket.
    let mark = unsafe { &mut *mark };
    mark.dst_addr = *addr;
    mark.dst_port = port;
    mark.turned_to = turned_to;
}

/// What [`note_turn`] wrote into a mark that is not null.
#[inline(always)]
pub(crate) fn read_turn(mark: *mut SocketMark) -> ([u8; 16], u16, u16) {
    // SAFETY: callers checked for null; the value lives as long as its socket.
    let mark = unsafe { &*mark };
    (mark.dst_addr, mark.dst_port, mark.turned_to)
}

/// A storage value that is not null, as a reference for a map's insert.
#[inline(always)]
pub(crate) fn whole(origin: *mut Origin) -> &'static Origin {
    // SAFETY: callers checked for null; used within the program's run, while its socket lives.
    unsafe { &*origin }
}
