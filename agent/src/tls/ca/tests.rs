//! Tests of `tls::ca`.
