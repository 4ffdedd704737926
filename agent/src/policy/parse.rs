//! Text to policy, with a place for every error.
