//! Every map, who writes it, and safe accessors; no other file declares one.
#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "the address of a map value's field and the access to it are one operation"
)]
#![expect(unsafe_code, reason = "aya's map attributes, and references into map values")]

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, PerCpuArray, RingBuf, SkStorage, lpm_trie::Key};
use aya_ebpf::macros::btf_map;
use callgate_common::flow::{BudgetKey, EventBudget, FlowShare, FlowUse, SuppressedKey};
use callgate_common::names::{
    EVENT_BYTES, MAX_BUDGETS, MAX_DIRECT, MAX_FLOWS, MAX_LISTENERS, MAX_OWN_ADDRESSES, MAX_PORTS,
    MAX_SUPPRESSED, MAX_SUPPRESSED_DIRECT, MAX_WORKLOADS,
};
use callgate_common::verdict::COUNTERS as SLOTS;
use callgate_common::{
    DialKey, DirectKey, Event, FlowKey, Listener, ListenerKey, ListenerMark, Origin, Reason,
};

use crate::storage::Marks;

/// Entries are made as needed: the large tables stay small on a quiet host.
const NO_PREALLOC: usize = 1;

/// No workload has this number.
pub(crate) const NO_WORKLOAD: u32 = 0;

/// Cgroup id to workload number. Written by the agent.
#[btf_map]
static WORKLOADS: HashMap<u64, u32, MAX_WORKLOADS> = HashMap::new();
/// The agent's ports. Written by the agent.
#[btf_map]
static LISTENERS: HashMap<ListenerKey, Listener, MAX_LISTENERS, NO_PREALLOC> = HashMap::new();
/// Ports that rules name. Written by the agent.
#[btf_map]
static DIAL_PORTS: HashMap<DialKey, u8, MAX_PORTS, NO_PREALLOC> = HashMap::new();
/// Direct destinations. Written by the agent.
#[btf_map]
static DIRECT: LpmTrie<DirectKey, u8, MAX_DIRECT> = LpmTrie::new();
/// Ports to listen on. Written by the agent.
#[btf_map]
static LISTEN_PORTS: HashMap<DialKey, u8, MAX_PORTS, NO_PREALLOC> = HashMap::new();
/// This host's IPv6 addresses. Written by the agent.
#[btf_map]
static OWN_ADDRESSES: HashMap<[u8; 16], u8, MAX_OWN_ADDRESSES, NO_PREALLOC> = HashMap::new();
/// The agent's last sign of life. Written by the worker.
#[btf_map]
static LIVENESS: Array<u64, 2> = Array::new();
/// Mark of each managed socket. Written here.
#[btf_map]
pub(crate) static SOCKETS: Marks = Marks::new();
/// The caller's facts. Written here.
#[btf_map]
pub(crate) static ORIGINS: SkStorage<Origin> = SkStorage::new();
/// The agent's listeners. Written by the agent.
#[btf_map]
pub(crate) static LISTENER_MARKS: SkStorage<ListenerMark> = SkStorage::new();
/// Handshakes between their two ends. Written here; an entry is never evicted for another's sake.
#[btf_map]
static FLOWS: HashMap<FlowKey, Origin, MAX_FLOWS, NO_PREALLOC> = HashMap::new();
/// Entries of each workload in `FLOWS`. Made by the agent, counted here.
#[btf_map]
static FLOW_USE: HashMap<u32, FlowUse, MAX_WORKLOADS> = HashMap::new();
/// How many they may be. Written by the agent.
#[btf_map]
static FLOW_SHARES: HashMap<u32, FlowShare, MAX_WORKLOADS> = HashMap::new();
/// To the agent. Written here.
#[btf_map]
static EVENTS: RingBuf<Event, EVENT_BYTES> = RingBuf::new();
/// Event budgets. Made by the agent, counted here.
#[btf_map]
static EVENT_BUDGETS: HashMap<BudgetKey, EventBudget, MAX_BUDGETS> = HashMap::new();
/// What had no event. Counted here, taken out by the agent.
#[btf_map]
static SUPPRESSED: HashMap<SuppressedKey, u64, MAX_SUPPRESSED, NO_PREALLOC> = HashMap::new();
/// Direct connections that had none, by destination. Counted here, taken out by the agent.
#[btf_map]
static SUPPRESSED_DIRECT: HashMap<SuppressedKey, u64, MAX_SUPPRESSED_DIRECT, NO_PREALLOC> = HashMap::new();
/// One count for each reason. Written here.
#[btf_map]
static COUNTERS: PerCpuArray<u64, SLOTS> = PerCpuArray::new();

/// The workload whose slice has this cgroup id; [`NO_WORKLOAD`] if none. A plain number, since copying an
/// `Option` reads a payload that is not there, which the verifier refuses.
#[inline(always)]
pub(crate) fn workload(cgroup_id: u64) -> u32 {
    match WORKLOADS.get_ptr(cgroup_id) {
        // SAFETY: a live map value; the agent replaces entries whole.
        Some(number) => unsafe { *number },
        None => NO_WORKLOAD,
    }
}

/// The agent's ports for a workload in a network namespace.
#[inline(always)]
pub(crate) fn listener(netns: u64, workload: u32) -> Option<Listener> {
    let key = ListenerKey {
        netns,
        workload,
        pad: 0,
    };
    // SAFETY: eight bytes that are read at once; the agent replaces entries whole.
    unsafe { LISTENERS.get(key) }.copied()
}

/// Whether some rule of the workload names the port.
#[inline(always)]
pub(crate) fn may_dial(workload: u32, port: u16) -> bool {
    DIAL_PORTS
        .get_ptr(DialKey {
            workload,
            port,
            pad: 0,
        })
        .is_some()
}

/// Whether the workload may accept connections on the port.
#[inline(always)]
pub(crate) fn may_listen(workload: u32, port: u16) -> bool {
    LISTEN_PORTS
        .get_ptr(DialKey {
            workload,
            port,
            pad: 0,
        })
        .is_some()
}

/// Whether a direct rule covers the destination, for this port or for all.
#[inline(always)]
pub(crate) fn is_direct(workload: u32, port: u16, protocol: u8, addr: [u8; 16]) -> bool {
    let mut key = Key::new(
        DirectKey::BITS,
        DirectKey {
            workload,
            port,
            protocol,
            pad: 0,
            addr,
        },
    );
    if DIRECT.get(&key).is_some() {
        return true;
    }
    key.data.port = 0;
    DIRECT.get(&key).is_some()
}

/// Whether the agent's host has this IPv6 address.
#[inline(always)]
pub(crate) fn is_own_address(addr: &[u8; 16]) -> bool {
    OWN_ADDRESSES.get_ptr(addr).is_some()
}

/// CLOCK_MONOTONIC of the agent's last sign of life, in ns.
#[inline(always)]
pub(crate) fn last_beat() -> u64 {
    LIVENESS.get(0).copied().unwrap_or(0)
}

/// Adds one to a reason's counter on this CPU.
#[inline(always)]
pub(crate) fn count(reason: Reason) {
    if let Some(slot) = COUNTERS.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's own slot, valid for the length of the program.
        unsafe { *slot += 1 };
    }
}

/// The workload's event budget for a class of reasons.
#[inline(always)]
pub(crate) fn budget(workload: u32, class: u32) -> Option<&'static mut EventBudget> {
    let budget = EVENT_BUDGETS.get_ptr_mut(BudgetKey { workload, class })?;
    // SAFETY: a live map value; racing CPUs can only miscount by a few.
    Some(unsafe { &mut *budget })
}

/// Counts what has no event of its own; false if there is no room for that either.
#[inline(always)]
pub(crate) fn suppress(key: &mut SuppressedKey) -> bool {
    if key.reason == Reason::Direct as u32 && add_one(&SUPPRESSED_DIRECT, key) {
        return true;
    }
    key.addr = [0; 16];
    key.port = 0;
    key.protocol = 0;
    add_one(&SUPPRESSED, key)
}

#[inline(always)]
fn add_one<const MOST: usize>(
    counts: &HashMap<SuppressedKey, u64, MOST, NO_PREALLOC>,
    key: &SuppressedKey,
) -> bool {
    const NO_EXIST: u64 = 1;
    if counts.get_ptr_mut(key).is_none() && counts.insert(key, 0, NO_EXIST).is_err() {
        // Another CPU may have been quicker.
        if counts.get_ptr_mut(key).is_none() {
            return false;
        }
    }
    let Some(count) = counts.get_ptr_mut(key) else {
        return false;
    };
    // SAFETY: an aligned live map value, which programs change atomically; one that the agent has just taken out stays
    // memory until the program ends.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(count, 1) };
    true
}

/// Room for one event.
#[inline(always)]
pub(crate) fn reserve_event() -> Option<aya_ebpf::maps::ring_buf::RingBufEntry<Event>> {
    EVENTS.reserve(0)
}

/// Keeps a connection until the listener's side sees it; false if the workload's share or the table is full.
#[inline(always)]
pub(crate) fn put_flow(key: &FlowKey, origin: &Origin) -> bool {
    let Some(of_workload) = FLOW_USE.get_ptr_mut(origin.workload) else {
        return false;
    };
    // Counted first, so that two CPUs can't both take the last place.
    count_added(of_workload);
    if held(origin.workload, of_workload).is_some_and(|(held, limit)| held <= limit)
        && insert_flow(key, origin)
    {
        return true;
    }
    count_removed(of_workload);
    false
}

/// An entry of the same two ends is what an earlier connection left that never came to be.
#[inline(always)]
fn insert_flow(key: &FlowKey, origin: &Origin) -> bool {
    const NO_EXIST: u64 = 1;
    const EEXIST: i32 = -17;
    match FLOWS.insert(key, origin, NO_EXIST) {
        Ok(()) => true,
        Err(EEXIST) => {
            forget_flow(key, origin.workload);
            FLOWS.insert(key, origin, NO_EXIST).is_ok()
        }
        Err(_) => false,
    }
}

/// Whether the workload may begin one more connection.
#[inline(always)]
pub(crate) fn has_flow_room(workload: u32) -> bool {
    FLOW_USE
        .get_ptr_mut(workload)
        .and_then(|of_workload| held(workload, of_workload))
        .is_some_and(|(held, limit)| held < limit)
}

/// How many entries a workload holds, and how many it may.
#[inline(always)]
fn held(workload: u32, of_workload: *mut FlowUse) -> Option<(u64, u64)> {
    // SAFETY: a live map value; the agent replaces entries whole.
    let share = unsafe { FLOW_SHARES.get(workload) }?;
    // SAFETY: a live map value.
    let removed = unsafe { core::ptr::read_volatile(&raw const (*of_workload).removed) };
    // SAFETY: a live map value.
    let added = unsafe { core::ptr::read_volatile(&raw const (*of_workload).added) };
    // `added` is read last: the sum is never too small for having been read in pieces.
    Some((
        added.wrapping_sub(removed).wrapping_sub(share.swept),
        u64::from(share.limit),
    ))
}

#[inline(always)]
fn count_added(of_workload: *mut FlowUse) {
    // SAFETY: an aligned field of a live map value, which programs change atomically.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(&raw mut (*of_workload).added, 1) };
}

#[inline(always)]
fn count_removed(of_workload: *mut FlowUse) {
    // SAFETY: an aligned field of a live map value, which programs change atomically.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(&raw mut (*of_workload).removed, 1) };
}

/// The connection that the listener's side just established.
#[inline(always)]
pub(crate) fn flow(key: &FlowKey) -> Option<*const Origin> {
    FLOWS.get_ptr(key)
}

/// Forgets a workload's connection. Who takes it out counts it; a missing entry was counted by another.
#[inline(always)]
pub(crate) fn forget_flow(key: &FlowKey, workload: u32) {
    if FLOWS.remove(key).is_ok()
        && let Some(of_workload) = FLOW_USE.get_ptr_mut(workload)
    {
        count_removed(of_workload);
    }
}
