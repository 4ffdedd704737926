//! Carries the origin from the client's socket to the accepted one.
//!
//! The client's end is established before its last ACK leaves, so the entry is there when the listener's
//! end completes, resets and paused listeners included. Where the listener's end never does, the entry goes when the
//! client's socket gives up its address: nobody who takes that after it is taken for the client.

use aya_ebpf::programs::SockOpsContext;
use aya_log_ebpf::warn;
use callgate_common::{FlowKey, Reason};

use crate::handshake::Handshake;
use crate::{maps, storage};

const ACTIVE_ESTABLISHED: u32 = 4;
const PASSIVE_ESTABLISHED: u32 = 5;
const STATE_CHANGE: u32 = 10;
/// Number of the state after the change, among the arguments.
const NEW_STATE: usize = 1;
const CLOSE: u32 = 7;
/// BPF_SOCK_OPS_STATE_CB_FLAG: asks for calls at changes of the state.
const STATE_CHANGES: i32 = 4;

/// On the workload's cgroup.
#[inline(always)]
pub(crate) fn client(ctx: &SockOpsContext) {
    match ctx.op() {
        ACTIVE_ESTABLISHED => connected(ctx),
        STATE_CHANGE if ctx.arg(NEW_STATE) == CLOSE => closed(ctx),
        _ => {}
    }
}

/// Puts the origin where the listener's end finds it.
#[inline(always)]
fn connected(ctx: &SockOpsContext) {
    let Some(hand) = Handshake::read(ctx) else { return };
    let mark = storage::get(&maps::SOCKETS, hand.sk);
    if mark.is_null() || storage::read_turn(mark).2 != hand.remote_port {
        return;
    }
    let origin = storage::get(&maps::ORIGINS, hand.sk);
    if origin.is_null() {
        return;
    }
    let origin = storage::whole(origin);
    // First: an entry that nobody takes back would wait for whoever comes by.
    if ctx.set_cb_flags(ctx.cb_flags() as i32 | STATE_CHANGES).is_err()
        || !maps::put_flow(&key_of_client(&hand), origin)
    {
        maps::count(Reason::FlowLost);
        warn!(
            ctx,
            "workload {}: no room for a handshake, the connection will be refused", origin.workload
        );
    }
}

/// Takes the origin back, if the listener's end has not taken it. The kernel calls this before it frees the address.
#[inline(always)]
fn closed(ctx: &SockOpsContext) {
    let Some(hand) = Handshake::read(ctx) else { return };
    let own = storage::get(&maps::ORIGINS, hand.sk);
    if own.is_null() {
        return;
    }
    let own = storage::whole(own);
    let key = key_of_client(&hand);
    if let Some(there) = maps::flow(&key)
        && storage::whole(there.cast_mut()).socket_cookie == own.socket_cookie
    {
        maps::forget_flow(&key, own.workload);
    }
}

#[inline(always)]
fn key_of_client(hand: &Handshake) -> FlowKey {
    FlowKey {
        netns: hand.netns,
        addr: hand.local,
        port: hand.local_port,
        listener_port: hand.remote_port,
        pad: 0,
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
