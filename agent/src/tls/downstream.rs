//! TLS towards the workload.
