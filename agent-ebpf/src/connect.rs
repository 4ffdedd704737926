//! connect(): the checks in order, then the turn to the agent.

use callgate_common::names::{CANARY_ADDR, CANARY_PORT};
use callgate_common::{Listener, Reason, SocketMark, flow};

use crate::ctx::{self, SockAddr};
use crate::verdict::Verdict;
use crate::{config, event, maps, origin, storage};

/// DNS.
pub(crate) const DNS: u16 = 53;
const LOOPBACK4: [u8; 4] = [127, 0, 0, 1];
const LOOPBACK6: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// Where a socket's call goes, once it is known to be the workload's own.
pub(crate) struct Own {
    /// The workload of both the socket's maker and the caller.
    pub(crate) workload: u32,
    /// The socket's mark.
    pub(crate) mark: *mut SocketMark,
}

/// connect() on a TCP or UDP socket.
#[inline(always)]
pub(crate) fn connect<const V6: bool>(ctx: &SockAddr<V6>) -> Verdict {
    let own = match own(ctx) {
        Ok(own) => own,
        Err(refusal) => return refusal,
    };
    let protocol = ctx.protocol() as u8;
    let (addr, port) = (ctx.addr(), ctx.port());
    if maps::is_direct(own.workload, port, protocol, addr) {
        return direct(ctx, &own);
    }
    let udp = protocol == flow::UDP;
    if udp && port != DNS {
        return event::refused(ctx, own.workload, Reason::UdpNotAllowed);
    }
    let netns = ctx.netns();
    let Some(listener) = maps::listener(netns, own.workload) else {
        return event::refused(ctx, own.workload, Reason::NoListener);
    };
    if !udp && !may_dial(&listener, own.workload, port) && !is_canary(&addr, port) {
        return event::refused(ctx, own.workload, Reason::PortNotNamed);
    }
    if V6 && !is_home(&ctx.bound_to()) {
        return event::refused(ctx, own.workload, Reason::SourceAddress);
    }
    if ctx.device() > 1 && !ctx.bind_to_loopback() {
        return event::refused(ctx, own.workload, Reason::DeviceBound);
    }
    turn(ctx, &own, &listener, udp)
}

/// Whether the agent's answers stay on this host. They would follow a forged source to where it lives.
#[inline(always)]
pub(crate) fn is_home(source: &[u8; 16]) -> bool {
    ctx::is_unspecified(source) || ctx::is_home(source)
}

/// TCP 53 is the stub's where the workload has one.
#[inline(always)]
fn may_dial(listener: &Listener, workload: u32, port: u16) -> bool {
    maps::may_dial(workload, port) || (port == DNS && (listener.dns4 != 0 || listener.dns6 != 0))
}

/// The agent tries that way from inside each workload; its worker refuses all others that take it.
#[inline(always)]
fn is_canary(addr: &[u8; 16], port: u16) -> bool {
    port == CANARY_PORT && *addr == ctx::mapped(CANARY_ADDR)
}

/// Both the socket and its caller belong to one workload, and the agent lives.
#[inline(always)]
pub(crate) fn own<const V6: bool>(ctx: &SockAddr<V6>) -> Result<Own, Verdict> {
    let caller = ctx::caller_workload();
    let mark = storage::get(&maps::SOCKETS, ctx.sk());
    if mark.is_null() {
        return Err(event::refused(ctx, caller, Reason::UnmarkedSocket));
    }
    let workload = storage::marked_workload(mark);
    if caller != workload {
        return Err(event::refused(ctx, workload, Reason::ForeignSocket));
    }
    if !is_agent_alive() {
        return Err(event::refused(ctx, workload, Reason::AgentSilent));
    }
    Ok(Own { workload, mark })
}

/// A word from the future counts as fresh: another CPU's clock may be a little ahead.
#[inline(always)]
fn is_agent_alive() -> bool {
    let beat = maps::last_beat();
    beat != 0 && ctx::monotonic().saturating_sub(beat) <= config::liveness_max_ns()
}

#[inline(always)]
fn direct<const V6: bool>(ctx: &SockAddr<V6>, own: &Own) -> Verdict {
    storage::note_turn(own.mark, &[0; 16], 0, 0);
    event::direct(ctx, own.workload);
    Verdict::Pass
}

/// Notes where the call meant to go and rewrites it to the agent's port, if the agent holds that.
#[inline(always)]
pub(crate) fn turn<const V6: bool>(ctx: &SockAddr<V6>, own: &Own, listener: &Listener, udp: bool) -> Verdict {
    let (addr, port) = (ctx.addr(), ctx.port());
    let v4 = ctx::is_v4(&addr);
    let ours = match (v4, udp) {
        (true, false) => listener.tcp4,
        (false, false) => listener.tcp6,
        (true, true) => listener.dns4,
        (false, true) => listener.dns6,
    };
    if ours == 0 {
        let reason = if udp {
            Reason::UdpNotAllowed
        } else {
            Reason::NoListener
        };
        return event::refused(ctx, own.workload, reason);
    }
    if !ctx.is_ours(v4, udp, ours, own.workload) {
        return event::refused(ctx, own.workload, Reason::ListenerNotOurs);
    }
    if !udp && !maps::has_flow_room(own.workload) {
        return event::refused(ctx, own.workload, Reason::FlowShare);
    }
    if !origin::keep(ctx, own.workload) {
        return event::refused(ctx, own.workload, Reason::MapFull);
    }
    storage::note_turn(own.mark, &addr, port, ours);
    let target = if v4 { ctx::mapped(LOOPBACK4) } else { LOOPBACK6 };
    ctx.set(&target, ours);
    maps::count(Reason::Redirected);
    Verdict::Pass
}
