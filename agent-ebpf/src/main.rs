//! Entry points of the kernel programs: call the hook's module, turn its answer into the kernel's number.
//!
//! On any other target than BPF this is an empty program, so that the workspace can be checked whole.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// `core::sync::atomic` leaves out whole counters where a target can't compare and swap; the kernel can add.
#![cfg_attr(
    target_arch = "bpf",
    feature(core_intrinsics),
    expect(internal_features, reason = "atomic addition")
)]
#![cfg_attr(
    target_arch = "bpf",
    expect(
        unsafe_code,
        reason = "aya's attributes expand to unsafe(no_mangle) and unsafe(link_section)"
    )
)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod config;
#[cfg(target_arch = "bpf")]
mod connect;
#[cfg(target_arch = "bpf")]
mod create;
#[cfg(target_arch = "bpf")]
mod ctx;
#[cfg(target_arch = "bpf")]
mod established;
#[cfg(target_arch = "bpf")]
mod event;
#[cfg(target_arch = "bpf")]
mod guard;
#[cfg(target_arch = "bpf")]
mod handshake;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod origin;
#[cfg(target_arch = "bpf")]
mod packet;
#[cfg(target_arch = "bpf")]
mod panic;
#[cfg(target_arch = "bpf")]
mod peername;
#[cfg(target_arch = "bpf")]
mod programs;
#[cfg(target_arch = "bpf")]
mod sendmsg;
#[cfg(target_arch = "bpf")]
mod sockopt;
#[cfg(target_arch = "bpf")]
mod storage;
#[cfg(target_arch = "bpf")]
mod verdict;
