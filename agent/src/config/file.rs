//! What the operator writes in callgate.toml.
