//! Files that may be read as secrets, and those that may not.
