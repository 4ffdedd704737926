//! Accepting connections, and what to do when that fails.
