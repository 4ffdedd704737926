//! Tests of `tls::upstream`.
