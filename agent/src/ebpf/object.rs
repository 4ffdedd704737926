//! The embedded kernel object and its digest.
