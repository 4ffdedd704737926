//! The record's schema: stable names, a version, no secret.
