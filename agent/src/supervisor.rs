//! The privileged process: start order, reload, stop. Parses nothing from the network.

pub mod sandbox;
pub mod worker_process;
