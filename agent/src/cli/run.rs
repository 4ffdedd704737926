//! `callgate run`: the daemon.
