//! Memory that is not in use goes back to the system: what start, reload or a busy time took, and code that no longer runs.
#![expect(
    unsafe_code,
    reason = "the C library's and the kernel's own calls; there are no safe wrappers"
)]

use std::ffi::c_void;
use std::ops::Range;
use std::ptr::NonNull;
use std::slice;
use std::time::Duration;

use libc::{PF_W, PT_LOAD, c_int, dl_phdr_info, size_t};
use nix::sys::mman::{MmapAdvise, madvise};

/// Bytes that every page size of Linux divides.
const PAGE: u64 = 64 * 1024;

/// How often [`unmap_code`] is worth its price.
pub const CODE_SPAN: Duration = Duration::from_secs(1);

/// Returns what is free in the allocator's heap to the system. Start and reload leave holes far larger than what stays (the
/// kernel's types, policy texts, root certificates); so do many connections that are gone. Takes some milliseconds; not for
/// the path of a call.
pub fn give_back() {
    // SAFETY: takes no pointer and may be called at any time from any thread (malloc_trim(3)).
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Unmaps the code of the program and its libraries until it runs again. What runs often is back at once, by some hundred
/// faults that read nothing from disk, under a millisecond in all; what starts, reloads, or serves another protocol than is
/// spoken now stays out, and the kernel can give its pages to others.
pub fn unmap_code() {
    for segment in read_only_segments() {
        let_go(&segment);
    }
}

/// Keeps up to a MiB free at the end of each thread's heap. Unless told, the allocator returns what is over 128 KiB, and a
/// thread that passes bodies on would get and return its pages for every few records.
pub fn keep_some() {
    #[cfg(target_env = "gnu")]
    {
        const KEPT: c_int = 1024 * 1024;
        // SAFETY: takes no pointer; sets a number of the allocator's (mallopt(3)).
        let set = unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT) };
        if set == 0 {
            tracing::debug!("the allocator's threshold can't be set");
        }
    }
}

/// Pages of a file that nothing writes: they come back from there when they are touched.
fn let_go(segment: &Range<usize>) {
    let Some(start) = NonNull::new(segment.start as *mut c_void) else {
        return;
    };
    // SAFETY: the range is a mapping of the program's or a library's file, as the loader says, that is not writable, and
    // code without text relocations, as compilers make it for 64-bit systems, is not written to while it is loaded either:
    // so no page of it differs from the file, and dropping one changes nothing that can be read (madvise(2),
    // MADV_DONTNEED). A debugger's breakpoints go.
    let advised = unsafe { madvise(start, segment.len(), MmapAdvise::MADV_DONTNEED) };
    if let Err(error) = advised {
        tracing::debug!(%error, "code can't be unmapped");
    }
}

fn read_only_segments() -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let data = (&raw mut found).cast::<c_void>();
    // SAFETY: the callback gets `data` back as it is, and runs before this returns (dl_iterate_phdr(3)).
    unsafe {
        libc::dl_iterate_phdr(Some(add), data);
    }
    found
}

/// Notes one object's segments.
///
/// # Safety
/// As `dl_iterate_phdr` calls it, with a `Vec<Range<usize>>` as `data` that nobody else uses.
unsafe extern "C" fn add(info: *mut dl_phdr_info, _size: size_t, data: *mut c_void) -> c_int {
    // SAFETY: the loader's own description of an object, valid during the call.
    let info = unsafe { &*info };
    // SAFETY: the vector that `read_only_segments` passed, which waits for this call to end.
    let found = unsafe { &mut *data.cast::<Vec<Range<usize>>>() };
    // SAFETY: so many headers lie there for as long as the object is loaded, which the loader sees to during the call.
    let headers = unsafe { slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    for header in headers {
        if header.p_type == PT_LOAD && header.p_flags & PF_W == 0 {
            found.extend(whole_pages(info.dlpi_addr + header.p_vaddr, header.p_memsz));
        }
    }
    0
}

/// The pages that lie in the segment as a whole.
fn whole_pages(start: u64, length: u64) -> Option<Range<usize>> {
    let end = start.checked_add(length)? / PAGE * PAGE;
    let start = start.checked_next_multiple_of(PAGE)?;
    (start < end).then_some(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resident() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("RssFile:")).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
    }

    #[test]
    fn code_that_ran_once_is_not_kept_in_memory() {
        let before = resident();
        unmap_code();
        let after = resident();
        assert!(after < before, "{before} KiB before, {after} KiB after");
    }

    #[test]
    fn only_pages_that_are_all_of_the_segment_are_let_go() {
        assert_eq!(whole_pages(PAGE + 1, 3 * PAGE), Some(0x20000..0x40000));
        assert_eq!(whole_pages(PAGE + 1, PAGE), None);
        assert_eq!(whole_pages(u64::MAX, PAGE), None);
    }
}
