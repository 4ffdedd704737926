//! Memory that was used once, at start or reload, and goes back to the system.
#![expect(unsafe_code, reason = "the C library's own call; there is no safe wrapper")]

/// Returns what is free in the allocator's heap to the system. Start and reload leave holes far larger than what
/// stays: the kernel's types, policy texts, root certificates. Takes a few milliseconds; not for the path of a call.
pub fn give_back() {
    // SAFETY: takes no pointer and may be called at any time from any thread (malloc_trim(3)).
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
