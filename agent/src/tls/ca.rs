//! The interception CA and its name-constrained intermediates.
