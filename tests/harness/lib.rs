//! What the end-to-end tests and the demo are written in: a sandbox, a real upstream, the real agent, real
//! clients, and the audit records as the oracle.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use harness::{Upstream, World, assert_record};
//!
//! let mut world = World::new()?;
//! world.upstream(Upstream::new("api.example.test").bearer("s3cret", "acme"))?;
//! world.secret("api", "s3cret")?;
//! world.policy("billing.toml", "...")?;
//! world.start_agent()?;
//! let reply = world.workload("billing").run(["curl", "-sS", "https://api.example.test/v1/charges"])?;
//! assert_eq!(reply.code(), Some(0));
//! assert_record!(world, "workload" = "billing", "status" = 200);
//! # Ok(())
//! # }
//! ```
//!
//! [`World::new`] moves the calling thread, and so every process that it starts, into network and mount
//! namespaces of its own; tests therefore run side by side, as threads of one process (`cargo test`) or as
//! processes (`cargo nextest`). Dropping the world removes all of it.

pub mod agent;
pub mod audit;
pub mod bed;
pub mod ca;
pub mod cgroup;
pub mod keeper;
pub mod kernel;
pub mod launch;
pub mod limit;
pub mod note;
pub mod notify;
pub mod sandbox;
pub mod scripted;
pub mod upstream;
pub mod wait;
pub mod workload;
pub mod world;

pub use agent::Agent;
pub use audit::Record;
pub use bed::Bed;
pub use keeper::Keeper;
pub use kernel::Feature;
pub use launch::Output;
pub use scripted::{Arrived, Scripted};
pub use upstream::{Access, Upstream};
pub use workload::Client;
pub use world::World;
