//! Credentials: what they are, where they come from, how they go on a request.

pub mod exec;
pub mod file;
pub mod inject;
pub mod secret;
pub mod spec;
pub mod store;
pub mod systemd;
