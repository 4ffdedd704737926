//! Sans-IO reader of the ClientHello: found, not TLS, need more.
