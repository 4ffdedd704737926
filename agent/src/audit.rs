//! One record per call: what it holds, who writes it, and what survives a kill.

pub mod file;
pub mod inflight;
pub mod record;
pub mod recorder;
