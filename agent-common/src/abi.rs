//! The version of everything that is shared through pinned maps.

/// Bumped when a type, a map or its meaning changes; pins of another version are refused, not guessed at.
pub const VERSION: u32 = 3;
