//! The entry points: one line each.

use aya_ebpf::macros::{cgroup_skb, cgroup_sock, cgroup_sock_addr, cgroup_sockopt, sock_ops};
use aya_ebpf::programs::{SkBuffContext, SockAddrContext, SockContext, SockOpsContext, SockoptContext};

use crate::ctx::{Packet, SockAddr, SockOption};
use crate::{connect, create, established, guard, packet, peername, sendmsg, sockopt};

/// A socket is made.
#[cgroup_sock(sock_create)]
pub(crate) fn cg_create(ctx: SockContext) -> i32 {
    create::create(&ctx)
}

/// connect() to an IPv4 address.
#[cgroup_sock_addr(connect4)]
pub(crate) fn cg_connect4(ctx: SockAddrContext) -> i32 {
    connect::connect(&SockAddr::<false>::new(ctx)).code()
}

/// connect() to an IPv6 or v4-mapped address.
#[cgroup_sock_addr(connect6)]
pub(crate) fn cg_connect6(ctx: SockAddrContext) -> i32 {
    connect::connect(&SockAddr::<true>::new(ctx)).code()
}

/// sendto() and sendmsg() with an IPv4 address.
#[cgroup_sock_addr(sendmsg4)]
pub(crate) fn cg_sendmsg4(ctx: SockAddrContext) -> i32 {
    sendmsg::sendmsg(&SockAddr::<false>::new(ctx)).code()
}

/// sendto() and sendmsg() with an IPv6 address.
#[cgroup_sock_addr(sendmsg6)]
pub(crate) fn cg_sendmsg6(ctx: SockAddrContext) -> i32 {
    sendmsg::sendmsg(&SockAddr::<true>::new(ctx)).code()
}

/// The source address that recvfrom() shows.
#[cgroup_sock_addr(recvmsg4)]
pub(crate) fn cg_recvmsg4(ctx: SockAddrContext) -> i32 {
    peername::restore(&SockAddr::<false>::new(ctx))
}

/// The source address that recvfrom() shows on an IPv6 socket.
#[cgroup_sock_addr(recvmsg6)]
pub(crate) fn cg_recvmsg6(ctx: SockAddrContext) -> i32 {
    peername::restore(&SockAddr::<true>::new(ctx))
}

/// What getpeername() shows.
#[cgroup_sock_addr(getpeername4)]
pub(crate) fn cg_peername4(ctx: SockAddrContext) -> i32 {
    peername::restore(&SockAddr::<false>::new(ctx))
}

/// What getpeername() shows on an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
pub(crate) fn cg_peername6(ctx: SockAddrContext) -> i32 {
    peername::restore(&SockAddr::<true>::new(ctx))
}

/// connect() below the guarded cgroup.
#[cgroup_sock_addr(connect4)]
pub(crate) fn gd_connect4(ctx: SockAddrContext) -> i32 {
    guard::guard(&SockAddr::<false>::new(ctx)).code()
}

/// connect() below the guarded cgroup.
#[cgroup_sock_addr(connect6)]
pub(crate) fn gd_connect6(ctx: SockAddrContext) -> i32 {
    guard::guard(&SockAddr::<true>::new(ctx)).code()
}

/// sendto() below the guarded cgroup.
#[cgroup_sock_addr(sendmsg4)]
pub(crate) fn gd_sendmsg4(ctx: SockAddrContext) -> i32 {
    guard::guard(&SockAddr::<false>::new(ctx)).code()
}

/// sendto() below the guarded cgroup.
#[cgroup_sock_addr(sendmsg6)]
pub(crate) fn gd_sendmsg6(ctx: SockAddrContext) -> i32 {
    guard::guard(&SockAddr::<true>::new(ctx)).code()
}

/// A packet leaves a managed socket.
#[cgroup_skb(egress)]
pub(crate) fn cg_egress(ctx: SkBuffContext) -> i32 {
    packet::egress(&Packet::new(ctx))
}

/// A packet reaches a managed socket.
#[cgroup_skb(ingress)]
pub(crate) fn cg_ingress(ctx: SkBuffContext) -> i32 {
    packet::ingress(&Packet::new(ctx))
}

/// A packet leaves a socket of the agent's.
#[cgroup_skb(egress)]
pub(crate) fn ag_egress(ctx: SkBuffContext) -> i32 {
    packet::agent_egress(&Packet::new(ctx))
}

/// setsockopt() on a managed socket.
#[cgroup_sockopt(setsockopt)]
pub(crate) fn cg_setsockopt(ctx: SockoptContext) -> i32 {
    sockopt::set(&SockOption::new(&ctx))
}

/// The client's end of a handshake.
#[sock_ops]
pub(crate) fn flow_client(ctx: SockOpsContext) -> u32 {
    established::client(&ctx);
    1
}

/// The listener's end of a handshake.
#[sock_ops]
pub(crate) fn flow_server(ctx: SockOpsContext) -> u32 {
    established::server(&ctx);
    1
}
