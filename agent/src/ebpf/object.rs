//! The embedded kernel object.

use super::Error;

/// What the build script compiled; empty when `bpf-linker` was missing.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/capture.o"));

/// The object's bytes.
///
/// # Errors
/// If this binary was built without the kernel programs.
pub(super) fn bytes() -> Result<&'static [u8], Error> {
    if OBJECT.is_empty() {
        Err(Error::NoObject)
    } else {
        Ok(OBJECT)
    }
}
