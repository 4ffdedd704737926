//! Tracing set-up and the meaning of the levels.
