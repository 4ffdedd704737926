//! The answer of a hook that can refuse.

use callgate_common::Reason;

use crate::ctx;

/// What the kernel is told.
#[derive(Clone, Copy)]
pub(crate) enum Verdict {
    /// Go on.
    Pass,
    /// Refuse, for this reason.
    Refuse(Reason),
}

const ECONNREFUSED: i32 = 111;

impl Verdict {
    /// The program's return value. Policy is EPERM (the kernel's default for 0); an agent that is not there, or
    /// has no room at present, is ECONNREFUSED, which clients retry.
    #[inline(always)]
    pub(crate) fn code(self) -> i32 {
        match self {
            Self::Pass => 1,
            Self::Refuse(
                Reason::AgentSilent
                | Reason::NoListener
                | Reason::ListenerNotOurs
                | Reason::MapFull
                | Reason::FlowShare,
            ) => {
                ctx::set_retval(-ECONNREFUSED);
                0
            }
            Self::Refuse(_) => 0,
        }
    }
}
