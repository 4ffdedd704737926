//! A process that has the kernel name another file as its executable.
//!
//! prctl(PR_SET_MM, PR_SET_MM_MAP) takes any executable file from whoever has CAP_CHECKPOINT_RESTORE in its own user
//! namespace (`prctl_set_mm_map`, kernel/sys.c), which everybody has in one of its making. The file that runs must not
//! be mapped any more (`replace_mm_exe_file`, kernel/fork.c): it is copied into memory without a name, place by place.
#![expect(unsafe_code, reason = "no safe wrapper replaces a program's own memory")]

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::ptr;

/// PR_SET_MM_MAP's argument (include/uapi/linux/prctl.h).
#[repr(C)]
struct Map {
    /// start_code to env_end.
    places: [u64; 11],
    auxv: u64,
    auxv_size: u32,
    exe_fd: u32,
}

/// Where in /proc/PID/stat the places are, in the order of [`Map`], counted from the state, which is the third; brk is
/// not told there (proc(5)).
const FIELDS: [Option<usize>; 11] = [
    Some(26 - 3),
    Some(27 - 3),
    Some(45 - 3),
    Some(46 - 3),
    Some(47 - 3),
    None,
    Some(28 - 3),
    Some(48 - 3),
    Some(49 - 3),
    Some(50 - 3),
    Some(51 - 3),
];

/// From here on `/proc/PID/exe` is this file.
pub(super) fn as_file(path: &str) -> io::Result<()> {
    let file = File::open(path)?;
    // SAFETY: touches no memory; this process has one thread.
    checked(unsafe { libc::unshare(libc::CLONE_NEWUSER) })?;
    let map = Map {
        places: places()?,
        auxv: 0,
        auxv_size: 0,
        exe_fd: u32::try_from(file.as_raw_fd()).map_err(io::Error::other)?,
    };
    for (start, length, protection) in own_mappings()? {
        replace(start, length, protection)?;
    }
    // SAFETY: a whole structure of the stated length, with the places that the process has.
    checked(unsafe {
        libc::prctl(
            libc::PR_SET_MM,
            libc::PR_SET_MM_MAP,
            &raw const map,
            size_of::<Map>(),
            0,
        )
    })
}

fn checked(answer: i32) -> io::Result<()> {
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn places() -> io::Result<[u64; 11]> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(')').ok_or(io::ErrorKind::InvalidData)?;
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    // SAFETY: asks where the heap ends and changes nothing.
    let end = unsafe { libc::sbrk(0) };
    let mut places = [end.addr() as u64; 11];
    for (place, field) in places.iter_mut().zip(FIELDS) {
        if let Some(field) = field {
            let text = fields.get(field).ok_or(io::ErrorKind::InvalidData)?;
            *place = text.parse().map_err(io::Error::other)?;
        }
    }
    Ok(places)
}

/// Start, length and protection of what is mapped of the executable.
fn own_mappings() -> io::Result<Vec<(usize, usize, i32)>> {
    let own = fs::read_link("/proc/self/exe")?;
    let own = own.to_str().ok_or(io::ErrorKind::InvalidData)?;
    let maps = fs::read_to_string("/proc/self/maps")?;
    let of_own = maps.lines().filter(|line| line.ends_with(own));
    let read = |line: &str| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let start = usize::from_str_radix(start, 16).ok()?;
        let end = usize::from_str_radix(end, 16).ok()?;
        let bits = [
            ('r', libc::PROT_READ),
            ('w', libc::PROT_WRITE),
            ('x', libc::PROT_EXEC),
        ];
        let is_set = |letter| rest.get(..3).is_some_and(|shown| shown.contains(letter));
        let set = bits.into_iter().filter(|(letter, _)| is_set(*letter));
        Some((start, end - start, set.fold(0, |all, (_, bit)| all | bit)))
    };
    Ok(of_own.filter_map(read).collect())
}

/// Puts a copy without a file in the place of a mapping.
fn replace(start: usize, length: usize, protection: i32) -> io::Result<()> {
    let place = ptr::with_exposed_provenance_mut::<libc::c_void>(start);
    let writable = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: new memory, wherever there is room.
    let copy = unsafe { libc::mmap(ptr::null_mut(), length, writable, flags, -1, 0) };
    if copy == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both are mapped in this length, and the new one is nobody's.
    unsafe { ptr::copy_nonoverlapping(place, copy, length) };
    // SAFETY: the copy is still nobody's.
    checked(unsafe { libc::mprotect(copy, length, protection) })?;
    let fixed = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: the same bytes come to lie there, with the same protection; nothing has written to them since.
    let moved = unsafe { libc::mremap(copy, length, length, fixed, place) };
    if moved == place {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
