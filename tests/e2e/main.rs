//! The end-to-end tests: the real agent, real clients, the real kernel; one binary.
//!
//! Run them with `cargo xtask test`, which builds the agent and says where it is. Each test makes a
//! [`harness::World`] and is named as a sentence; what it expects of a call, it asks the audit records.

/// Upstream addresses: the name's own, and on record as they are.
mod address;
/// The admin socket, to which anybody may connect.
mod admin;
/// One record for each call, whatever ends it, and who writes it.
mod audit;
/// A connect from inside each workload that proves its capture.
mod canary;
/// The kernel side alone: each way to connect is caught and attributed, or refused.
#[cfg(test)]
mod capture;
/// The wire outside: what leaves the host, and what does not.
mod capture_wire;
/// Containers that systemd starts for podman and Docker, on a booted Debian.
#[cfg(test)]
mod containers;
/// A secret reaches its upstream and nothing else; bad sources give none.
mod credential;
/// A process that says that it runs another program.
mod disguise;
/// Names: what a workload may ask, by UDP and TCP.
mod dns;
/// What the doctor finds.
mod doctor;
/// A command under `exec` can neither leave its workload nor undo what holds it.
mod escape;
/// What is missing, broken or gone refuses, and is got over.
mod fail_closed;
/// The kernel that the tests run on: what it lacks is named.
mod features;
/// gRPC by its own library: streams, trailers, refusals.
mod grpc;
/// Sockets made outside of a workload and handed in lead nowhere.
mod handed;
/// The agent under the hardening of its installed unit.
mod hardened;
/// HTTP/1.1: bodies, odd requests, credentials on the wire, upgrades, and what upstreams do wrong.
mod http;
/// HTTP/2: streams, trailers, floods, and what breaks the protocol.
mod http2;
/// Who is calling: what the records say of the caller, and that nobody passes for another.
mod identity;
/// The package on a booted Debian.
mod installed;
/// Hosts that keep cgroups elsewhere, and kernels that lack something.
mod layout;
/// Clients that call without a pause, for those who change the agent under them.
#[cfg(test)]
mod load;
/// Workloads in other network namespaces than the agent's.
mod netns;
/// What the policy no longer names when the agent comes back.
mod orphan;
/// Kernel programs that root takes away: noticed, put back, on record.
mod perimeter;
/// What policy answers: to real calls, to `explain`, and in `observe` mode.
mod policy;
/// One workload that takes all it can get, and another that notices nothing.
mod quota;
/// The README's first policy, typed as it stands.
mod readme;
/// Neither the agent nor the kernel sends a managed process's words to another host.
mod reflect;
/// Letting go of all workloads with the agent stopped, and what can stand in the way.
mod release;
/// One worker after another, by request and by death: nothing lost, nothing opened.
#[cfg(test)]
mod replace;
/// The whole agent stopped, killed and upgraded while it is used.
#[cfg(test)]
mod restart;
/// A right that is taken back while it is used.
mod revoke;
/// The host's roots as they change, for the verification of upstreams.
mod roots;
/// Unmodified programs of many runtimes on a booted Debian, each with its row in the README's table.
#[cfg(test)]
mod runtimes;
/// The harness itself: the sandbox is one, the upstream tells callers apart, nothing is left behind.
mod sandbox;
/// The agent's own unit file, as systemd's offline checks see it.
#[cfg(test)]
mod service;
/// What an operator can get wrong at start and reload: said clearly, nothing left behind, nothing lost.
mod startup;
/// What never answers holds up its own workload alone.
mod stuck;
/// TLS between client and agent: what is served, what is refused, and how.
mod tls;
/// `tunnel` rules: TLS passed unread, within its limits and for as long as the policy allows it.
mod tunnel;
/// systemd services that are enabled as workloads, on a booted Debian.
mod units;
/// A BPF file system that the host unmounts, and the agent that ends then.
mod unmounted;
/// Connections to upstreams: what shares one, resumption, and certificates that prove nothing.
mod upstream;
