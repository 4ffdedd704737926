//! Real processes in cgroups of their own.
