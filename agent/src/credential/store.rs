//! The current value of each credential, by name and version.
