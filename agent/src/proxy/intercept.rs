//! A connection whose requests are read: TLS and HTTP service.
