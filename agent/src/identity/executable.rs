//! The executable of a process, and its digest.
