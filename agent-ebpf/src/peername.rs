//! What the process sees as its peer is what it dialled.

use crate::ctx::{self, SockAddr};
use crate::{maps, storage};

/// Gives back the original destination where the peer is the agent. These hooks may only answer 1.
#[inline(always)]
pub(crate) fn restore<const V6: bool>(ctx: &SockAddr<V6>) -> i32 {
    let mark = storage::get(&maps::SOCKETS, ctx.sk());
    if mark.is_null() {
        return 1;
    }
    let (addr, port, turned_to) = storage::read_turn(mark);
    if turned_to == 0 || ctx.port() != turned_to || !ctx::is_loopback(&ctx.addr()) {
        return 1;
    }
    // After IPV6_ADDRFORM the v4 hook runs on what may be a v6 record.
    if !V6 && !ctx::is_v4(&addr) {
        return 1;
    }
    ctx.set(&addr, port);
    1
}
