//! How well the wall clock is kept, as far as the kernel was told by who keeps it.
#![expect(unsafe_code, reason = "the kernel's own call; there is no safe wrapper")]

use std::io;
use std::mem::MaybeUninit;
use std::time::Duration;

/// What adjtimex(2) says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Kept {
    /// Whether it was set by another clock, and not too long ago.
    pub synchronised: bool,
    /// How far it can be off, which grows by half a millisecond each second from one correction to the next.
    pub error: Duration,
}

/// Asks the kernel; changes nothing.
///
/// # Errors
/// If a filter of system calls forbids it, as in some containers.
pub fn kept() -> io::Result<Kept> {
    // SAFETY: a structure of integers alone; with `modes` zero the kernel only writes to it.
    let mut asked: libc::timex = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: the structure is the kernel's and lives throughout the call (adjtimex(2)).
    if unsafe { libc::adjtimex(&raw mut asked) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Kept {
        synchronised: asked.status & libc::STA_UNSYNC == 0,
        error: Duration::from_micros(asked.maxerror.unsigned_abs()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_counts_a_clock_as_unsynchronised_once_it_can_be_sixteen_seconds_off() {
        // NTP_PHASE_LIMIT of include/linux/timex.h.
        const LIMIT: Duration = Duration::from_secs(16);
        let kept = kept().unwrap();
        assert!(kept.error <= LIMIT, "{kept:?}");
        assert!(!kept.synchronised || kept.error < LIMIT, "{kept:?}");
    }
}
