//! Sockets.

pub mod cork;
pub mod deadline;
pub mod farewell;
pub mod frames;
pub mod listener;
pub mod peek;
pub mod requests;
pub mod splice;
