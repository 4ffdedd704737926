//! The path of a call: accept, identify, detect, decide, inject, forward, record.

pub mod connection;
pub mod intercept;
pub mod pool;
pub mod request;
pub mod tracker;
pub mod tunnel;
