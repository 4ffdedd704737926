//! Sockets.

pub mod deadline;
pub mod listener;
pub mod peek;
pub mod requests;
pub mod splice;
