//! Tests of `tls::downstream`.
