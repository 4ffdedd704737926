//! The admin socket: peer credentials checked, one request a connection.
