//! The end-to-end tests: the real agent, real clients, the real kernel; one binary.
//!
//! Run them with `cargo xtask test`, which builds the agent and says where it is. Each test makes a
//! [`harness::World`] and is named as a sentence; what it expects of a call, it asks the audit records.

/// One record for each call, whatever ends it, and who writes it.
mod audit;
/// The kernel side alone: each way to connect is caught and attributed, or refused.
#[cfg(test)]
mod capture;
/// A secret reaches its upstream and nothing else; bad sources give none.
mod credential;
/// A command under `exec` can neither leave its workload nor undo what holds it.
mod escape;
/// What is missing, broken or gone refuses, and is got over.
mod fail_closed;
/// HTTP/1.1: bodies, odd requests, credentials on the wire, upgrades, and what upstreams do wrong.
mod http;
/// HTTP/2 and gRPC: streams, trailers, floods, and what breaks the protocol.
mod http2;
/// Who is calling: what the records say of the caller, and that nobody passes for another.
mod identity;
/// What policy answers: to real calls, to `explain`, and in `observe` mode.
mod policy;
/// One workload that takes all it can get, and another that notices nothing.
mod quota;
/// One worker after another, by request and by death: nothing lost, nothing opened.
mod replace;
/// The harness itself: the sandbox is one, the upstream tells callers apart, nothing is left behind.
mod sandbox;
/// TLS between client and agent: what is served, what is refused, and how.
mod tls;
