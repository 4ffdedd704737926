//! callgate: unmodified programs call APIs; the agent checks each call against a least-privilege policy and
//! puts the credential on.
//!
//! The path of a call: accept, identify, detect, decide, inject, forward, record ([`proxy`]).

pub mod addr;
pub mod admin;
pub mod audit;
pub mod budget;
pub mod channel;
pub mod cli;
pub mod config;
pub mod credential;
pub mod dns;
pub mod ebpf;
pub mod enroll;
pub mod http;
pub mod identity;
pub mod linkage;
pub mod memory;
pub mod net;
pub mod policy;
pub mod proxy;
pub mod rights;
pub mod supervisor;
pub mod systemd;
pub mod telemetry;
#[cfg(test)]
mod tests;
pub mod time;
pub mod tls;
pub mod worker;
