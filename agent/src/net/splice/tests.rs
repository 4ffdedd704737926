//! Tests of `net::splice`.
