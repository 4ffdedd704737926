//! Copies both ways until both ends close, with counts and half-close.
