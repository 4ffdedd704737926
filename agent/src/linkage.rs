//! What a statically linked `callgate` has to do without: the C library's modules for users and groups.
//!
//! `/etc/nsswitch.conf` may name modules (systemd, sss, ldap) that glibc loads with a second copy of itself, which a program
//! without a loader does not survive. Such a binary knows the users of `/etc/passwd` and `/etc/group`.
#![expect(unsafe_code, reason = "the C library's own call; there is no safe wrapper")]

use std::ffi::{CStr, c_char, c_int};

/// What is asked for, of all that `/etc/nsswitch.conf` configures.
const ASKED: [&CStr; 3] = [c"passwd", c"group", c"initgroups"];

unsafe extern "C" {
    /// glibc, nss.h: where a database is looked up from now on; 0, or -1 with errno.
    fn __nss_configure_lookup(database: *const c_char, services: *const c_char) -> c_int;
}

/// Looks users and groups up in files alone, from now on. To be called before anything asks for one.
///
/// # Errors
/// If the C library knows no such lookup.
pub fn users_from_files() -> std::io::Result<()> {
    for database in ASKED {
        // SAFETY: both are strings that end with a NUL and live for ever; the C library copies what it needs, and the
        // program has one thread yet.
        if unsafe { __nss_configure_lookup(database.as_ptr(), c"files".as_ptr()) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}
