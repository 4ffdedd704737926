//! Carries the origin from the client's socket to the accepted one.
//!
//! The client's end is established before its last ACK leaves, so the entry is there when the listener's
//! end completes, resets and paused listeners included.

use aya_ebpf::programs::SockOpsContext;
use aya_log_ebpf::warn;
use callgate_common::{FlowKey, Reason};

use crate::ctx::Handshake;
use crate::{maps, storage};

const ACTIVE_ESTABLISHED: u32 = 4;
const PASSIVE_ESTABLISHED: u32 = 5;

/// On the workload's cgroup: puts the origin where the listener's end finds it.
#[inline(always)]
pub(crate) fn client(ctx: &SockOpsContext) {
    if ctx.op() != ACTIVE_ESTABLISHED {
        return;
    }
    let Some(hand) = Handshake::read(ctx) else { return };
    let mark = storage::get(&maps::SOCKETS, hand.sk);
    if mark.is_null() || storage::read_turn(mark).2 != hand.remote_port {
        return;
    }
    let origin = storage::get(&maps::ORIGINS, hand.sk);
    if origin.is_null() {
        return;
    }
    let key = FlowKey {
        netns: hand.netns,
        addr: hand.local,
        port: hand.local_port,
        listener_port: hand.remote_port,
        pad: 0,
    };
    let origin = storage::whole(origin);
    if !maps::put_flow(&key, origin) {
        maps::count(Reason::FlowLost);
        warn!(
            ctx,
            "workload {}: no room for a handshake, the connection will be refused", origin.workload
        );
    }
}

/// On the agent's cgroup: moves the origin into the accepted socket's storage.
#[inline(always)]
pub(crate) fn server(ctx: &SockOpsContext) {
    if ctx.op() != PASSIVE_ESTABLISHED {
        return;
    }
    let Some(hand) = Handshake::read(ctx) else { return };
    let key = FlowKey {
        netns: hand.netns,
        addr: hand.remote,
        port: hand.remote_port,
        listener_port: hand.local_port,
        pad: 0,
    };
    let Some(origin) = maps::flow(&key) else { return };
    if storage::make(&maps::ORIGINS, hand.sk, origin).is_null() {
        maps::count(Reason::OriginLost);
        warn!(
            ctx,
            "no memory for the origin of an accepted socket, it will be refused"
        );
    }
    maps::forget_flow(&key, storage::whole(origin.cast_mut()).workload);
}
