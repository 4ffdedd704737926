//! Credentials: what they are, where they come from, how they go on a request.
//!
//! The supervisor reads the sources ([`source::Keeper`]) and sends each value to the worker as an
//! [`Update`]; the worker keeps them in a [`store::Store`], and [`inject::inject`] puts them on requests.

pub mod exec;
pub mod file;
pub mod inject;
pub mod secret;
pub mod source;
pub mod spec;
pub mod store;
pub mod systemd;

pub use inject::{Error, Injected, inject, is_client_credential};
pub use secret::{Secret, SecretError, WireSecret};
pub use source::{Keeper, Update, Value};
pub use spec::CredentialSpec;
pub use store::Store;
