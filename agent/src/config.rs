//! The agent's own settings, validated and immutable.

pub mod file;
pub mod validate;
