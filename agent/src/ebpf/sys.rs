//! The bpf commands that aya has no public call for, and one socket option. Source: include/uapi/linux/bpf.h.
#![expect(unsafe_code, reason = "raw system calls; each wrapper is safe to call")]

use std::ffi::CString;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const PROG_QUERY: libc::c_long = 16;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const MAP_LOOKUP_AND_DELETE: libc::c_long = 21;
const LINK_CREATE: libc::c_long = 28;
const LINK_UPDATE: libc::c_long = 29;

/// `enum bpf_attach_type` for the hooks in use.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub(super) enum Hook {
    Ingress = 0,
    Egress = 1,
    SockCreate = 2,
    SockOps = 3,
    Connect4 = 10,
    Connect6 = 11,
    Sendmsg4 = 14,
    Sendmsg6 = 15,
    Recvmsg4 = 19,
    Recvmsg6 = 20,
    Setsockopt = 22,
    Peername4 = 29,
    Peername6 = 30,
}

impl Hook {
    /// All of them, with the kernel's names.
    pub(super) const ALL: [(Self, &str); 13] = [
        (Self::Ingress, "ingress"),
        (Self::Egress, "egress"),
        (Self::SockCreate, "sock_create"),
        (Self::SockOps, "sock_ops"),
        (Self::Connect4, "connect4"),
        (Self::Connect6, "connect6"),
        (Self::Sendmsg4, "sendmsg4"),
        (Self::Sendmsg6, "sendmsg6"),
        (Self::Recvmsg4, "recvmsg4"),
        (Self::Recvmsg6, "recvmsg6"),
        (Self::Setsockopt, "setsockopt"),
        (Self::Peername4, "getpeername4"),
        (Self::Peername6, "getpeername6"),
    ];
}

#[repr(C)]
#[derive(Default)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct Link {
    first: u32,
    second: u32,
    hook_or_flags: u32,
    tail: u32,
}

#[repr(C)]
#[derive(Default)]
struct InfoRequest {
    fd: u32,
    length: u32,
    info: u64,
}

/// The first members of `struct bpf_link_info`, for a cgroup link.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LinkInfo {
    kind: u32,
    id: u32,
    /// The number of the program.
    pub(super) program: u32,
    pad: u32,
    /// Cgroup id; 0 once the cgroup is gone.
    pub(super) cgroup: u64,
    hook: u32,
    tail: u32,
}

#[repr(C)]
#[derive(Default)]
struct Element {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct Query {
    target: u32,
    hook: u32,
    flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    pad: u32,
}

fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<RawFd> {
    let size = size_of::<T>();
    // SAFETY: `attributes` is a whole structure of the stated size whose pointers outlive the call.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(answer).map_err(io::Error::other)
}

fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel just made this descriptor for us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn text(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Opens what is pinned at `path`.
pub(super) fn obj_get(path: &Path) -> io::Result<OwnedFd> {
    let path = text(path)?;
    let mut object = Object {
        path: path.as_ptr() as u64,
        ..Object::default()
    };
    bpf(OBJ_GET, &mut object).map(owned)
}

/// Pins an object.
pub(super) fn obj_pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = text(path)?;
    let mut object = Object {
        path: path.as_ptr() as u64,
        fd: raw(fd),
        flags: 0,
    };
    bpf(OBJ_PIN, &mut object).map(drop)
}

/// Attaches a program to a cgroup; it stays while the link is open or pinned.
pub(super) fn link_create(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    hook: Hook,
) -> io::Result<OwnedFd> {
    let mut link = Link {
        first: raw(program),
        second: raw(cgroup),
        hook_or_flags: hook as u32,
        tail: 0,
    };
    bpf(LINK_CREATE, &mut link).map(owned)
}

/// Replaces a link's program in one step: no packet sees neither.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut link = Link {
        first: raw(link),
        second: raw(program),
        hook_or_flags: 0,
        tail: 0,
    };
    bpf(LINK_UPDATE, &mut link).map(drop)
}

/// Takes a number out of a hash map whose keys are these and whose values are such (since Linux 5.14); `None` if it is not
/// there.
pub(super) fn take<K: aya::Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<u64>> {
    let mut value = 0_u64;
    let mut element = Element {
        map: raw(map),
        key: (&raw const *key) as u64,
        value: (&raw mut value) as u64,
        ..Element::default()
    };
    match bpf(MAP_LOOKUP_AND_DELETE, &mut element) {
        Ok(_) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether there is a cgroup of this id, by its file handle (fs/kernfs/mount.c, FILEID_KERNFS). Ids are not given twice
/// while the host runs.
pub(super) fn cgroup_exists(mount: BorrowedFd<'_>, id: u64) -> io::Result<bool> {
    #[repr(C)]
    struct Handle {
        bytes: libc::c_uint,
        kind: libc::c_int,
        id: u64,
    }
    const KERNFS: libc::c_int = 0xfe;
    let mut handle = Handle {
        bytes: libc::c_uint::try_from(size_of::<u64>()).map_err(io::Error::other)?,
        kind: KERNFS,
        id,
    };
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    // SAFETY: a whole handle that says its own length.
    let answer = unsafe { libc::open_by_handle_at(mount.as_raw_fd(), (&raw mut handle).cast(), flags) };
    if answer >= 0 {
        drop(owned(answer));
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ESTALE) {
        Ok(false)
    } else {
        Err(error)
    }
}

/// What a link is attached to.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = LinkInfo::default();
    let mut request = InfoRequest {
        fd: raw(link),
        length: u32::try_from(size_of::<LinkInfo>()).map_err(io::Error::other)?,
        info: (&raw mut info) as u64,
    };
    bpf(OBJ_GET_INFO_BY_FD, &mut request)?;
    Ok(info)
}

/// The numbers of all programs that run for a cgroup at a hook, inherited ones included (BPF_F_QUERY_EFFECTIVE).
pub(super) fn effective(cgroup: BorrowedFd<'_>, hook: Hook) -> io::Result<Vec<u32>> {
    const EFFECTIVE: u32 = 1;
    /// The kernel allows 64 on one cgroup (BPF_CGROUP_MAX_PROGS); it says so if all levels together have more.
    const MOST: u32 = 1024;
    let mut ids = vec![0_u32; MOST as usize];
    let mut query = Query {
        target: raw(cgroup),
        hook: hook as u32,
        flags: EFFECTIVE,
        ids: ids.as_mut_ptr() as u64,
        count: MOST,
        ..Query::default()
    };
    bpf(PROG_QUERY, &mut query)?;
    ids.truncate(query.count as usize);
    Ok(ids)
}

/// The number of a link, a map or a program: in the info of each it is the second member. One of a kind while it lives.
pub(super) fn object_id(object: BorrowedFd<'_>) -> io::Result<u32> {
    link_info(object).map(|info| info.id)
}

/// The user namespace that a namespace belongs to (ioctl_nsfs(2), NS_GET_USERNS).
pub(super) fn owner(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const NS_GET_USERNS: libc::Ioctl = 0xb701;
    // SAFETY: the command takes no argument.
    match unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_USERNS) } {
        answer if answer >= 0 => Ok(owned(answer)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The network namespace that a socket lives in (include/uapi/linux/sockios.h, SIOCGSKNS; needs CAP_NET_ADMIN in it).
pub(super) fn netns_of(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const SIOCGSKNS: libc::Ioctl = 0x894c;
    // SAFETY: the command takes no argument.
    match unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS) } {
        answer if answer >= 0 => Ok(owned(answer)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Cookie of the network namespace that a socket lives in (since Linux 5.14).
pub(super) fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).map_err(io::Error::other)?;
    let value = (&raw mut cookie).cast();
    // SAFETY: a buffer of the stated length.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            value,
            &raw mut length,
        )
    };
    if answer == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Whether a socket's filter can't be changed any more (SO_LOCK_FILTER).
pub(super) fn is_filter_locked(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let mut locked: libc::c_int = 0;
    let mut length = libc::socklen_t::try_from(size_of_val(&locked)).map_err(io::Error::other)?;
    // SAFETY: the kernel writes one int into `locked`.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LOCK_FILTER,
            (&raw mut locked).cast(),
            &raw mut length,
        )
    };
    if answer == 0 {
        Ok(locked != 0)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Locks a socket's filter for good: nobody may unlock it (net/core/sock.c, `SO_LOCK_FILTER`).
pub(super) fn lock_filter(socket: BorrowedFd<'_>) -> io::Result<()> {
    let locked: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of_val(&locked)).map_err(io::Error::other)?;
    // SAFETY: a buffer of the stated length.
    let answer = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LOCK_FILTER,
            (&raw const locked).cast(),
            length,
        )
    };
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A socket's filter, of at most `N` instructions; what there is less of is zero. The length goes in and comes out as their
/// number, not in bytes (net/core/filter.c, `sk_get_filter`).
pub(super) fn filter<const N: usize>(socket: BorrowedFd<'_>) -> io::Result<[(u16, u8, u8, u32); N]> {
    let mut found = [libc::sock_filter {
        code: 0,
        jt: 0,
        jf: 0,
        k: 0,
    }; N];
    let mut count = libc::socklen_t::try_from(N).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `count` instructions into `found`.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            found.as_mut_ptr().cast(),
            &raw mut count,
        )
    };
    if answer != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(found.map(|one| (one.code, one.jt, one.jf, one.k)))
}

/// Forbids an IPv4 socket to send anything, by an IPsec policy of its own (IP_XFRM_POLICY, net/xfrm/xfrm_user.c,
/// `xfrm_compile_policy`): who takes it off again needs CAP_NET_ADMIN.
pub(super) fn block_output4(socket: BorrowedFd<'_>) -> io::Result<()> {
    const IP_XFRM_POLICY: libc::c_int = 17;
    let policy = block_policy();
    let length = libc::socklen_t::try_from(policy.len()).map_err(io::Error::other)?;
    // SAFETY: a buffer of the stated length.
    let answer = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_IP,
            IP_XFRM_POLICY,
            policy.as_ptr().cast(),
            length,
        )
    };
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `struct xfrm_userpolicy_info` (include/uapi/linux/xfrm.h): any IPv4 packet out is blocked, for ever.
fn block_policy() -> [u8; 168] {
    const FAMILY: usize = 40;
    const LIMITS: usize = 56;
    const DIRECTION: usize = 160;
    const ACTION: usize = 161;
    const OUT: u8 = 1;
    const BLOCK: u8 = 1;
    let mut policy = [0; 168];
    let (family, limits) = (libc::AF_INET.to_ne_bytes(), u64::MAX.to_ne_bytes());
    for (at, bytes) in [
        (FAMILY, family.as_slice()),
        (LIMITS, &limits),
        (LIMITS + 8, &limits),
        (LIMITS + 16, &limits),
        (LIMITS + 24, &limits),
        (DIRECTION, &[OUT]),
        (ACTION, &[BLOCK]),
    ] {
        for (to, byte) in policy.iter_mut().skip(at).zip(bytes) {
            *to = *byte;
        }
    }
    policy
}
/// A descriptor that the calling task's runtime tells of when it becomes readable.
pub(super) fn wait_at(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor stays open and the same for as long as it is owned.
    let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    registered.map_err(io::Error::from)
}
