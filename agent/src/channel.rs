//! Typed messages and descriptors between supervisor and worker.
