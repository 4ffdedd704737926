//! `callgate status`: what runs.
