//! Paths: one normal form, templates over whole segments.

/// A request path in its one normal form.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NormalPath(String);
