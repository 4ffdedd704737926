//! Tests of `net::peek`.
