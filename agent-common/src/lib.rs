//! What the kernel programs and the agent say to each other: types, names, reasons, and a version.
//!
//! Layout rules: integers and byte arrays only (no `bool`, `usize`, `Option` or enum), padding is a named
//! zeroed field, addresses are 16 bytes in network order (IPv4 in its `::ffff:` form), ports are host order
//! numbers. `layout` asserts sizes at compile time; anything that changes here bumps [`abi::VERSION`].
#![no_std]

pub mod abi;
pub mod config;
pub mod event;
pub mod flow;
mod layout;
pub mod names;
pub mod origin;
#[cfg(feature = "user")]
mod pod;
pub mod socket;
pub mod verdict;

pub use config::{KernelConfig, TaskOffsets};
pub use event::Event;
pub use flow::{DialKey, DirectKey, FlowKey, Listener, ListenerKey};
pub use origin::Origin;
pub use socket::{ListenerMark, SocketMark};
pub use verdict::Reason;
