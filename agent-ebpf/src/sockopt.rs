//! setsockopt(): what would have the kernel itself send the process's words, or take foreign addresses for its own.

use crate::ctx::SockOption;
use crate::{ctx, event};

const SOL_IP: i32 = 0;
const SOL_IPV6: i32 = 41;

/// On a managed socket, by whomever.
#[inline(always)]
pub(crate) fn set(option: &SockOption) -> i32 {
    let (level, name) = option.name();
    let refused = match level {
        SOL_IP => is_refused4(name),
        SOL_IPV6 => is_refused6(name),
        _ => false,
    };
    if !refused {
        option.leave_value();
        return 1;
    }
    event::refused_option(ctx::caller_workload());
    0
}

/// By number (include/uapi/linux/in.h): IP_FREEBIND and IP_TRANSPARENT bind to addresses that are not the host's; a
/// change of memberships or of their sources is reported to the network with the addresses in it (IGMP).
#[inline(always)]
fn is_refused4(name: i32) -> bool {
    const FREEBIND: i32 = 15;
    const TRANSPARENT: i32 = 19;
    const ADD_MEMBERSHIP: i32 = 35;
    /// IP_UNBLOCK_SOURCE, IP_BLOCK_SOURCE, IP_ADD_SOURCE_MEMBERSHIP.
    const SOURCES: core::ops::RangeInclusive<i32> = 37..=39;
    const MSFILTER: i32 = 41;
    matches!(name, FREEBIND | TRANSPARENT | ADD_MEMBERSHIP | MSFILTER)
        || SOURCES.contains(&name)
        || is_membership(name)
}

/// The same (include/uapi/linux/in6.h); reports go out by MLD.
#[inline(always)]
fn is_refused6(name: i32) -> bool {
    const ADD_MEMBERSHIP: i32 = 20;
    const JOIN_ANYCAST: i32 = 27;
    const TRANSPARENT: i32 = 75;
    const FREEBIND: i32 = 78;
    matches!(name, ADD_MEMBERSHIP | JOIN_ANYCAST | TRANSPARENT | FREEBIND) || is_membership(name)
}

/// MCAST_JOIN_GROUP to MCAST_MSFILTER, of either level; leaving takes a membership.
#[inline(always)]
fn is_membership(name: i32) -> bool {
    const JOIN_GROUP: i32 = 42;
    const MSFILTER: i32 = 48;
    (JOIN_GROUP..=MSFILTER).contains(&name)
}
