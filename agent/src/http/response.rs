//! Refusals and errors in the client's own protocol, in fixed words.
