//! `callgate exec`: runs a command as a workload.
