//! End-to-end tests: real clients, real servers, real kernel. Those that load kernel programs need root.

#[cfg(test)]
mod capture;
