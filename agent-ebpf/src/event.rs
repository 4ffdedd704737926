//! Tells the agent what was refused; every refusal is counted, and a flood is cut and said to be cut.
#![expect(unsafe_code, reason = "ring buffer samples are filled in place")]
#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "the address of a sample's field and the write to it are one operation"
)]

use callgate_common::flow::SuppressedKey;
use callgate_common::names::EVENTS_PER_SECOND;
use callgate_common::{Event, Origin, Reason};

use crate::ctx::{self, Packet, SockAddr};
use crate::verdict::Verdict;
use crate::{maps, origin};

const SECOND_NS: u64 = 1_000_000_000;
/// BPF_RB_NO_WAKEUP and BPF_RB_FORCE_WAKEUP (include/uapi/linux/bpf.h).
const NO_WAKEUP: u64 = 1;
const WAKE: u64 = 2;

/// Counts and reports a refused call.
#[inline(always)]
pub(crate) fn refused<const V6: bool>(ctx: &SockAddr<V6>, workload: u32, reason: Reason) -> Verdict {
    send(nowhere(workload, reason), reason, |to| {
        origin::fill(to, ctx, workload)
    });
    Verdict::Refuse(reason)
}

/// Counts and reports a connection that passes in the kernel.
#[inline(always)]
pub(crate) fn direct<const V6: bool>(ctx: &SockAddr<V6>, workload: u32) {
    let mut passed = nowhere(workload, Reason::Direct);
    passed.addr = ctx.addr();
    passed.port = ctx.port();
    passed.protocol = ctx.protocol() as u8;
    send(passed, Reason::Direct, |to| origin::fill(to, ctx, workload));
}

/// Counts and reports a socket that was not made.
#[inline(always)]
pub(crate) fn refused_socket(workload: u32, protocol: u8) {
    send(nowhere(workload, Reason::SocketType), Reason::SocketType, |to| {
        // SAFETY: a whole sample.
        unsafe { to.write(Origin::EMPTY) };
        // SAFETY: just written, and no other reference to it.
        let to = unsafe { &mut *to };
        to.workload = workload;
        to.protocol = protocol;
        origin::caller(to);
    });
}

/// Counts and reports a socket option that was not set.
#[inline(always)]
pub(crate) fn refused_option(workload: u32) {
    send(
        nowhere(workload, Reason::SocketOption),
        Reason::SocketOption,
        |to| {
            // SAFETY: a whole sample.
            unsafe { to.write(Origin::EMPTY) };
            // SAFETY: just written, and no other reference to it.
            let to = unsafe { &mut *to };
            to.workload = workload;
            origin::caller(to);
        },
    );
}

/// Counts and reports a dropped packet. Its caller is unknown: the kernel may be sending on its own.
#[inline(always)]
pub(crate) fn dropped(packet: &Packet, workload: u32, to_whom: ([u8; 16], u16, u8), reason: Reason) {
    let cgroup = packet.cgroup();
    send(nowhere(workload, reason), reason, |to| {
        // SAFETY: a whole sample.
        unsafe { to.write(Origin::EMPTY) };
        // SAFETY: just written, and no other reference to it.
        let to = unsafe { &mut *to };
        to.workload = workload;
        to.cgroup_id = cgroup;
        to.dst_addr = to_whom.0;
        to.dst_port = to_whom.1;
        to.protocol = to_whom.2;
    });
}

/// What an event is counted under if it is not sent, for all but connections that pass.
#[inline(always)]
fn nowhere(workload: u32, reason: Reason) -> SuppressedKey {
    SuppressedKey {
        workload,
        reason: reason as u32,
        addr: [0; 16],
        port: 0,
        protocol: 0,
        pad: 0,
    }
}

#[inline(always)]
fn send(mut otherwise: SuppressedKey, reason: Reason, fill: impl FnOnce(*mut Origin)) {
    maps::count(reason);
    if spend(otherwise.workload, reason.class()) {
        if let Some(mut entry) = maps::reserve_event() {
            let sample: *mut Event = entry.as_mut_ptr();
            // SAFETY: a reserved sample of a whole Event.
            fill(unsafe { &raw mut (*sample).origin });
            // SAFETY: as above.
            unsafe { (&raw mut (*sample).reason).write(reason as u32) };
            // SAFETY: as above.
            unsafe { (&raw mut (*sample).pad).write(0) };
            entry.submit(urgency(reason));
            return;
        }
        maps::count(Reason::EventLost);
    } else {
        maps::count(Reason::EventSuppressed);
    }
    if !maps::suppress(&mut otherwise) {
        maps::count(Reason::MapFull);
    }
}

/// The agent reads events many times a second anyway. It is woken for what it can help: a listener that it has yet to
/// make.
#[inline(always)]
fn urgency(reason: Reason) -> u64 {
    if matches!(reason, Reason::NoListener) {
        WAKE
    } else {
        NO_WAKEUP
    }
}

/// Takes one event from the workload's budget for the class, if there is one left. Who has no budget has no events:
/// they are counted.
#[inline(always)]
fn spend(workload: u32, class: u32) -> bool {
    let Some(budget) = maps::budget(workload, class) else {
        return false;
    };
    let now = ctx::monotonic();
    if now.saturating_sub(budget.window) > SECOND_NS {
        budget.window = now;
        budget.sent = 0;
    }
    if budget.sent >= EVENTS_PER_SECOND {
        return false;
    }
    budget.sent += 1;
    true
}
