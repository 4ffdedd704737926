//! Stripping takes what it names and nothing else.
