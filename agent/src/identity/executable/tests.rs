//! Real processes, their executables and what becomes of them.
