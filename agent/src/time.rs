//! Clocks that a test can turn.
