//! Tests of `tls::leaf`.
