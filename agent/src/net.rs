//! Sockets.

pub mod listener;
pub mod peek;
pub mod splice;
