//! The unprivileged process: gives up everything, then runs one runtime per core.
