//! Headers that never pass.
