//! Above the workloads: a managed caller needs a socket that carries its own workload's mark.
//!
//! Hooks follow the socket's creation cgroup while `current` helpers follow the caller, so a socket made
//! beside the workload and handed in passes the workload's own programs by.

use callgate_common::Reason;

use crate::ctx::{self, SockAddr};
use crate::event;
use crate::maps;
use crate::storage;
use crate::verdict::Verdict;

/// Whether the caller may use the socket at all.
#[inline(always)]
pub(crate) fn guard<const V6: bool>(ctx: &SockAddr<V6>) -> Verdict {
    let workload = ctx::caller_workload();
    if workload == maps::NO_WORKLOAD {
        return Verdict::Pass;
    }
    let mark = storage::get(&maps::SOCKETS, ctx.sk());
    if mark.is_null() {
        return event::refused(ctx, workload, Reason::UnmarkedSocket);
    }
    Verdict::Pass
}
