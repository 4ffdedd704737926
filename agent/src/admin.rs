//! The operator's interface: types of the admin protocol on the Unix socket.

pub mod server;
