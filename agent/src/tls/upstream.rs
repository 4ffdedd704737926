//! TLS towards the world; no switch turns verification off.
