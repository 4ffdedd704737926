//! One matcher for each thing that a rule can name.
