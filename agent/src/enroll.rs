//! Which cgroups are workloads: make, arm, let go.
