//! What is ours in HTTP: detection, names, headers, refusals.

pub mod authority;
pub mod detect;
pub mod framing;
pub mod headers;
pub mod query;
pub mod response;
