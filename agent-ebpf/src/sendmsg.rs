//! Unconnected UDP: DNS goes to the agent's stub, direct rules pass, the rest is refused.

use callgate_common::{Reason, flow};

use crate::connect::{self, DNS};
use crate::ctx::SockAddr;
use crate::verdict::Verdict;
use crate::{event, maps};

/// sendto() or sendmsg() with an address.
#[inline(always)]
pub(crate) fn sendmsg<const V6: bool>(ctx: &SockAddr<V6>) -> Verdict {
    let own = match connect::own(ctx) {
        Ok(own) => own,
        Err(refusal) => return refusal,
    };
    let (addr, port) = (ctx.addr(), ctx.port());
    if maps::is_direct(own.workload, port, flow::UDP, addr) {
        return Verdict::Pass;
    }
    // This hook can't move a socket to the loopback device.
    if port != DNS || ctx.device() > 1 {
        return event::refused(ctx, own.workload, Reason::UdpNotAllowed);
    }
    let Some(listener) = maps::listener(ctx.netns(), own.workload) else {
        return event::refused(ctx, own.workload, Reason::NoListener);
    };
    if V6 && !connect::is_home(&ctx.sent_from()) {
        return event::refused(ctx, own.workload, Reason::SourceAddress);
    }
    connect::turn(ctx, &own, &listener, true)
}
