//! The only raw access to contexts and helpers; everything above works on plain values.
#![expect(
    unsafe_code,
    reason = "context fields and helper calls are raw pointers by nature"
)]
#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "the address of a context field and the access to it are one operation"
)]

use core::ffi::c_void;
use core::mem::size_of_val;

use aya_ebpf::bindings::{__sk_buff, bpf_sock, bpf_sock_addr, bpf_sock_tuple, bpf_sockopt};
use aya_ebpf::helpers::generated as helpers;
use aya_ebpf::programs::{SkBuffContext, SockAddrContext, SockoptContext};

use crate::maps::NO_WORKLOAD;
use crate::storage;

/// `::ffff:0:0/96`: an IPv4 address in its 16 byte form.
const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
const LOOPBACK6: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
/// Ethernet protocol numbers.
const ETH_IPV4: u16 = 0x0800;
const ETH_IPV6: u16 = 0x86dd;

/// The IP version of a packet.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(crate) enum Family {
    V4,
    V6,
}

/// The 16 byte form of an IPv4 address.
#[inline(always)]
pub(crate) fn mapped(v4: [u8; 4]) -> [u8; 16] {
    let mut addr = [0; 16];
    addr[..12].copy_from_slice(&MAPPED);
    addr[12..].copy_from_slice(&v4);
    addr
}

/// Whether the address is an IPv4 one.
#[inline(always)]
pub(crate) fn is_v4(addr: &[u8; 16]) -> bool {
    let (high, low, tag) = (word(addr, 0), word(addr, 4), word(addr, 8));
    high == 0 && low == 0 && tag == u32::from_ne_bytes([0, 0, 0xff, 0xff])
}

/// 127.0.0.0/8 or ::1.
#[inline(always)]
pub(crate) fn is_loopback(addr: &[u8; 16]) -> bool {
    if is_v4(addr) {
        return addr[12] == 127;
    }
    word(addr, 0) == 0
        && word(addr, 4) == 0
        && word(addr, 8) == 0
        && word(addr, 12) == u32::from_ne_bytes([0, 0, 0, 1])
}

/// The unspecified address, of either family.
#[inline(always)]
pub(crate) fn is_unspecified(addr: &[u8; 16]) -> bool {
    word(addr, 0) == 0 && word(addr, 4) == 0 && word(addr, 8) == 0 && word(addr, 12) == 0
}

/// Whether answers to this source stay on the host. IPv4 is not asked: routing itself refuses a source that is not the
/// host's (net/ipv4/route.c, ip_route_output_key_hash_rcu), IPv6's does not.
#[inline(always)]
pub(crate) fn is_home(source: &[u8; 16]) -> bool {
    is_v4(source) || is_loopback(source) || crate::maps::is_own_address(source)
}

#[inline(always)]
fn word(addr: &[u8; 16], at: usize) -> u32 {
    u32::from_ne_bytes([addr[at], addr[at + 1], addr[at + 2], addr[at + 3]])
}

#[inline(always)]
pub(crate) fn from_words(words: [u32; 4]) -> [u8; 16] {
    let mut addr = [0; 16];
    addr[..4].copy_from_slice(&words[0].to_ne_bytes());
    addr[4..8].copy_from_slice(&words[1].to_ne_bytes());
    addr[8..12].copy_from_slice(&words[2].to_ne_bytes());
    addr[12..].copy_from_slice(&words[3].to_ne_bytes());
    addr
}

/// The context of the connect, sendmsg, recvmsg and getpeername hooks. The family is a constant of the type:
/// were it a value, the compiler would merge the reads of both address fields behind one pointer, which the
/// verifier refuses.
pub(crate) struct SockAddr<const V6: bool> {
    raw: *mut bpf_sock_addr,
}

impl<const V6: bool> SockAddr<V6> {
    /// Wraps the hook's context.
    #[inline(always)]
    pub(crate) fn new(ctx: SockAddrContext) -> Self {
        Self { raw: ctx.sock_addr }
    }

    /// The socket.
    #[inline(always)]
    pub(crate) fn sk(&self) -> *mut c_void {
        // SAFETY: `raw` is the context; the kernel rewrites this read into one of its own.
        let sk = unsafe { core::ptr::read_volatile(&raw const (*self.raw).__bindgen_anon_1) };
        // SAFETY: the union has one member.
        unsafe { sk.sk }.cast()
    }

    /// The address in its 16 byte form.
    #[inline(always)]
    pub(crate) fn addr(&self) -> [u8; 16] {
        if V6 {
            return from_words([self.word6(0), self.word6(1), self.word6(2), self.word6(3)]);
        }
        // SAFETY: a context field.
        let v4 = unsafe { core::ptr::read_volatile(&raw const (*self.raw).user_ip4) };
        mapped(v4.to_ne_bytes())
    }

    #[inline(always)]
    fn word6(&self, index: usize) -> u32 {
        // SAFETY: a context field; every caller's index is below 4. Volatile, so that no two reads are merged.
        unsafe { core::ptr::read_volatile(&raw const (*self.raw).user_ip6[index]) }
    }

    /// The port, in host order.
    #[inline(always)]
    pub(crate) fn port(&self) -> u16 {
        // SAFETY: a context field.
        let port = unsafe { core::ptr::read_volatile(&raw const (*self.raw).user_port) };
        u16::from_be(port as u16)
    }

    /// The socket's protocol.
    #[inline(always)]
    pub(crate) fn protocol(&self) -> u32 {
        // SAFETY: a context field.
        unsafe { core::ptr::read_volatile(&raw const (*self.raw).protocol) }
    }

    /// Replaces address and port. The v4 hook takes the last four bytes only.
    #[inline(always)]
    pub(crate) fn set(&self, addr: &[u8; 16], port: u16) {
        if V6 {
            self.set_word6(0, word(addr, 0));
            self.set_word6(1, word(addr, 4));
            self.set_word6(2, word(addr, 8));
            self.set_word6(3, word(addr, 12));
        } else {
            // SAFETY: a context field that the hook may write.
            unsafe { core::ptr::write_volatile(&raw mut (*self.raw).user_ip4, word(addr, 12)) };
        }
        // SAFETY: a context field that the hook may write.
        unsafe { core::ptr::write_volatile(&raw mut (*self.raw).user_port, u32::from(port.to_be())) };
    }

    #[inline(always)]
    fn set_word6(&self, index: usize, value: u32) {
        // SAFETY: a context field that the hook may write; every caller's index is below 4.
        unsafe { core::ptr::write_volatile(&raw mut (*self.raw).user_ip6[index], value) };
    }

    /// The device that the socket is bound to; 0 is none.
    #[inline(always)]
    pub(crate) fn device(&self) -> u32 {
        let sk: *mut bpf_sock = self.sk().cast();
        // SAFETY: the verifier knows `sk` as a socket and checks the offset.
        unsafe { core::ptr::read_volatile(&raw const (*sk).bound_dev_if) }
    }

    /// The address that the socket is bound to.
    #[inline(always)]
    pub(crate) fn bound_to(&self) -> [u8; 16] {
        let sk: *mut bpf_sock = self.sk().cast();
        // SAFETY: the verifier knows `sk` as a socket and checks the offset; the index is below 4.
        let word = |index: usize| unsafe { core::ptr::read_volatile(&raw const (*sk).src_ip6[index]) };
        from_words([word(0), word(1), word(2), word(3)])
    }

    /// The address that a datagram is to be sent from: the socket's, or its own (IPV6_PKTINFO).
    #[inline(always)]
    pub(crate) fn sent_from(&self) -> [u8; 16] {
        // SAFETY: a context field; the index is below 4.
        let word =
            |index: usize| unsafe { core::ptr::read_volatile(&raw const (*self.raw).msg_src_ip6[index]) };
        from_words([word(0), word(1), word(2), word(3)])
    }

    /// Moves the socket to the loopback device.
    #[inline(always)]
    pub(crate) fn bind_to_loopback(&self) -> bool {
        const SOL_SOCKET: i32 = 1;
        const SO_BINDTODEVICE: i32 = 25;
        let mut name = *b"lo\0\0";
        // SAFETY: the context and a buffer of the stated length.
        unsafe {
            helpers::bpf_setsockopt(
                self.raw.cast(),
                SOL_SOCKET,
                SO_BINDTODEVICE,
                name.as_mut_ptr().cast(),
                3,
            ) == 0
        }
    }

    /// Cookie of the network namespace.
    #[inline(always)]
    pub(crate) fn netns(&self) -> u64 {
        // SAFETY: the context.
        unsafe { helpers::bpf_get_netns_cookie(self.raw.cast()) }
    }

    /// Cookie of the socket.
    #[inline(always)]
    pub(crate) fn cookie(&self) -> u64 {
        // SAFETY: the context.
        unsafe { helpers::bpf_get_socket_cookie(self.raw.cast()) }
    }

    /// Whether the agent's own listener for this workload holds the loopback port.
    #[inline(always)]
    pub(crate) fn is_ours(&self, v4: bool, udp: bool, port: u16, workload: u32) -> bool {
        let sk = if v4 {
            self.lookup4(udp, port)
        } else {
            self.lookup6(udp, port)
        };
        if sk.is_null() {
            return false;
        }
        let mark = storage::get(&crate::maps::LISTENER_MARKS, sk.cast());
        // SAFETY: not null; a live storage value while the reference is held.
        let ours = !mark.is_null() && unsafe { (*mark).workload } == workload;
        // SAFETY: the reference that the lookup took.
        unsafe { helpers::bpf_sk_release(sk.cast()) };
        ours
    }

    #[inline(always)]
    fn lookup4(&self, udp: bool, port: u16) -> *mut bpf_sock {
        let mut tuple = Tuple4 {
            saddr: 0,
            daddr: u32::from_ne_bytes([127, 0, 0, 1]),
            sport: 0,
            dport: port.to_be(),
        };
        self.lookup(udp, (&raw mut tuple).cast(), size_of_val(&tuple) as u32)
    }

    #[inline(always)]
    fn lookup6(&self, udp: bool, port: u16) -> *mut bpf_sock {
        let mut tuple = Tuple6 {
            saddr: [0; 16],
            daddr: LOOPBACK6,
            sport: 0,
            dport: port.to_be(),
        };
        self.lookup(udp, (&raw mut tuple).cast(), size_of_val(&tuple) as u32)
    }

    #[inline(always)]
    fn lookup(&self, udp: bool, tuple: *mut bpf_sock_tuple, size: u32) -> *mut bpf_sock {
        /// `BPF_F_CURRENT_NETNS`: the socket's own.
        const OWN_NETNS: u64 = u64::MAX;
        if udp {
            // SAFETY: the context and a tuple of the stated size.
            unsafe { helpers::bpf_sk_lookup_udp(self.raw.cast(), tuple, size, OWN_NETNS, 0) }
        } else {
            // SAFETY: the context and a tuple of the stated size.
            unsafe { helpers::bpf_sk_lookup_tcp(self.raw.cast(), tuple, size, OWN_NETNS, 0) }
        }
    }
}

/// The kernel's `bpf_sock_tuple.ipv4`, without the union.
#[repr(C)]
struct Tuple4 {
    saddr: u32,
    daddr: u32,
    sport: u16,
    dport: u16,
}

/// The kernel's `bpf_sock_tuple.ipv6`, without the union.
#[repr(C, align(4))]
struct Tuple6 {
    saddr: [u8; 16],
    daddr: [u8; 16],
    sport: u16,
    dport: u16,
}

/// The error number that the system call returns when the program refuses.
#[inline(always)]
pub(crate) fn set_retval(errno: i32) {
    // SAFETY: no pointers.
    unsafe { helpers::bpf_set_retval(errno) };
}

/// The workload of the calling task; [`NO_WORKLOAD`] if it is not managed.
#[inline(always)]
pub(crate) fn caller_workload() -> u32 {
    // SAFETY: no pointers.
    find_workload(|level| unsafe { helpers::bpf_get_current_ancestor_cgroup_id(level) })
}

/// The first ancestor that is a workload, at the known level or by search.
#[inline(always)]
fn find_workload(ancestor: impl Fn(i32) -> u64) -> u32 {
    /// Deeper parents than this are refused by the loader.
    const DEEPEST: i32 = 16;
    let level = crate::config::workload_level() as i32;
    if level != 0 {
        return crate::maps::workload(ancestor(level));
    }
    for level in 1..=DEEPEST {
        let id = ancestor(level);
        let workload = crate::maps::workload(id);
        if id == 0 || workload != NO_WORKLOAD {
            return workload;
        }
    }
    NO_WORKLOAD
}

/// CLOCK_MONOTONIC in ns.
#[inline(always)]
pub(crate) fn monotonic() -> u64 {
    // SAFETY: no pointers.
    unsafe { helpers::bpf_ktime_get_ns() }
}

/// A packet of a managed socket, seen from its IP header on.
pub(crate) struct Packet {
    ctx: SkBuffContext,
}

impl Packet {
    /// Wraps the hook's context.
    #[inline(always)]
    pub(crate) fn new(ctx: SkBuffContext) -> Self {
        Self { ctx }
    }

    #[inline(always)]
    fn raw(&self) -> *mut __sk_buff {
        self.ctx.skb.skb
    }

    /// A value at an offset from the IP header; `None` past the end.
    #[inline(always)]
    pub(crate) fn load<T>(&self, offset: usize) -> Option<T> {
        self.ctx.load(offset).ok()
    }

    /// Whether it goes out of (or came in by) the loopback device.
    #[inline(always)]
    pub(crate) fn on_loopback(&self) -> bool {
        /// Every network namespace's `lo` has this index (drivers/net/loopback.c).
        const LO: u32 = 1;
        // SAFETY: a context field.
        unsafe { core::ptr::read_volatile(&raw const (*self.raw()).ifindex) == LO }
    }

    /// The IP version, if it is one.
    #[inline(always)]
    pub(crate) fn family(&self) -> Option<Family> {
        match u16::from_be(self.ctx.skb.protocol() as u16) {
            ETH_IPV4 => Some(Family::V4),
            ETH_IPV6 => Some(Family::V6),
            _ => None,
        }
    }

    /// The workload of the packet's socket; [`NO_WORKLOAD`] if it is not managed.
    #[inline(always)]
    pub(crate) fn workload(&self) -> u32 {
        // SAFETY: the context.
        find_workload(|level| unsafe { helpers::bpf_skb_ancestor_cgroup_id(self.raw(), level) })
    }

    /// The cgroup of the packet's socket.
    #[inline(always)]
    pub(crate) fn cgroup(&self) -> u64 {
        // SAFETY: the context.
        unsafe { helpers::bpf_skb_cgroup_id(self.raw()) }
    }
}

/// The context of the setsockopt hook.
pub(crate) struct SockOption {
    raw: *mut bpf_sockopt,
}

impl SockOption {
    /// Wraps the hook's context.
    #[inline(always)]
    pub(crate) fn new(ctx: &SockoptContext) -> Self {
        Self { raw: ctx.sockopt }
    }

    /// Level and name of the option.
    #[inline(always)]
    pub(crate) fn name(&self) -> (i32, i32) {
        // SAFETY: a context field.
        let level = unsafe { core::ptr::read_volatile(&raw const (*self.raw).level) };
        // SAFETY: a context field.
        let name = unsafe { core::ptr::read_volatile(&raw const (*self.raw).optname) };
        (level, name)
    }

    /// Has the kernel use the caller's own value: the program is shown one page of it at most, and a longer one would be
    /// refused.
    #[inline(always)]
    pub(crate) fn leave_value(&self) {
        // SAFETY: a context field that the hook may write.
        unsafe { core::ptr::write_volatile(&raw mut (*self.raw).optlen, 0) };
    }
}

/// Type and protocol of a socket being made.
#[inline(always)]
pub(crate) fn socket_kind(ctx: &aya_ebpf::programs::SockContext) -> (u32, u32) {
    // SAFETY: a context field.
    let kind = unsafe { core::ptr::read_volatile(&raw const (*ctx.sock).type_) };
    // SAFETY: a context field.
    let protocol = unsafe { core::ptr::read_volatile(&raw const (*ctx.sock).protocol) };
    (kind, protocol)
}
