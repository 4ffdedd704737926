//! The only raw access to the sock_ops context.
#![expect(unsafe_code, reason = "context fields are raw pointers by nature")]
#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "the address of a context field and the access to it are one operation"
)]

use core::ffi::c_void;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated as helpers;
use aya_ebpf::programs::SockOpsContext;

use crate::ctx::{from_words, mapped};

/// The facts of a sock_ops event.
pub(crate) struct Handshake {
    /// The socket.
    pub(crate) sk: *mut c_void,
    /// Network namespace cookie.
    pub(crate) netns: u64,
    /// Own address.
    pub(crate) local: [u8; 16],
    /// Own port, host order.
    pub(crate) local_port: u16,
    /// Peer's address.
    pub(crate) remote: [u8; 16],
    /// Peer's port, host order.
    pub(crate) remote_port: u16,
}

impl Handshake {
    /// Reads all fields first and selects after: the verifier refuses context reads behind a merged pointer.
    #[inline(always)]
    pub(crate) fn read(ctx: &SockOpsContext) -> Option<Self> {
        const AF_INET: u32 = 2;
        let (local4, remote4) = (ctx.local_ip4(), ctx.remote_ip4());
        let (local6, remote6) = (read6(ctx, false), read6(ctx, true));
        let v4 = ctx.family() == AF_INET;
        // SAFETY: a context field.
        let sk = unsafe { core::ptr::read_volatile(&raw const (*ctx.ops).__bindgen_anon_2) };
        // SAFETY: the union has one member.
        let sk: *mut c_void = unsafe { sk.sk }.cast();
        if sk.is_null() {
            return None;
        }
        Some(Self {
            sk,
            // SAFETY: the context.
            netns: unsafe { helpers::bpf_get_netns_cookie(ctx.as_ptr()) },
            local: if v4 { mapped(local4.to_ne_bytes()) } else { local6 },
            local_port: ctx.local_port() as u16,
            remote: if v4 {
                mapped(remote4.to_ne_bytes())
            } else {
                remote6
            },
            remote_port: u32::from_be(ctx.remote_port()) as u16,
        })
    }
}

#[inline(always)]
fn read6(ctx: &SockOpsContext, remote: bool) -> [u8; 16] {
    from_words([
        word_of(ctx, remote, 0),
        word_of(ctx, remote, 1),
        word_of(ctx, remote, 2),
        word_of(ctx, remote, 3),
    ])
}

#[inline(always)]
fn word_of(ctx: &SockOpsContext, remote: bool, index: usize) -> u32 {
    if remote {
        // SAFETY: a context field; every caller's index is below 4.
        unsafe { core::ptr::read_volatile(&raw const (*ctx.ops).remote_ip6[index]) }
    } else {
        // SAFETY: a context field; every caller's index is below 4.
        unsafe { core::ptr::read_volatile(&raw const (*ctx.ops).local_ip6[index]) }
    }
}
