//! The kernel side as seen from here: load, attach, pin, read. Nothing else names aya.

pub mod events;
pub mod features;
pub mod loader;
pub mod maps;
pub mod object;
