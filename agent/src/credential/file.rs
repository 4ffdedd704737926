//! Source: a file, owner and mode checked.
