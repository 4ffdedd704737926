//! Upstream connections of one data thread, keyed by everything that must not be shared.
