//! The current policy with its generation; swapped whole.
