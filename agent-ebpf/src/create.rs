//! A socket is made: only TCP and UDP, marked with the workload of its maker.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::programs::SockContext;
use aya_log_ebpf::warn;
use callgate_common::{Reason, SocketMark, flow};

use crate::{ctx, event, maps, storage};

const EPROTONOSUPPORT: i32 = 93;
const ENOMEM: i32 = 12;

/// The kernel asks only for INET and INET6 sockets. Raw, ping, UDP-Lite, SCTP, DCCP, MPTCP and SMC have
/// protocol numbers of their own.
#[inline(always)]
pub(crate) fn create(ctx: &SockContext) -> i32 {
    const STREAM: u32 = 1;
    const DATAGRAM: u32 = 2;
    let workload = ctx::caller_workload();
    if workload == maps::NO_WORKLOAD {
        return 1;
    }
    let (kind, protocol) = ctx::socket_kind(ctx);
    let known = (kind == STREAM && protocol == u32::from(flow::TCP))
        || (kind == DATAGRAM && protocol == u32::from(flow::UDP));
    if !known {
        event::refused_socket(workload, protocol as u8);
        ctx::set_retval(-EPROTONOSUPPORT);
        return 0;
    }
    let mark = SocketMark {
        dst_addr: [0; 16],
        workload,
        dst_port: 0,
        turned_to: 0,
    };
    if storage::make(&maps::SOCKETS, ctx.as_ptr(), &raw const mark).is_null() {
        maps::count(Reason::MapFull);
        warn!(
            ctx,
            "workload {}: no memory for a socket's mark, it was not made", workload
        );
        ctx::set_retval(-ENOMEM);
        return 0;
    }
    1
}
