//! TLS on both sides; the one crypto provider.

pub mod ca;
pub mod client_hello;
pub mod downstream;
pub mod leaf;
pub mod upstream;
