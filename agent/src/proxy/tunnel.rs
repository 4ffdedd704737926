//! TLS passed through unread.
