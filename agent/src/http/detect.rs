//! Sans-IO protocol detection; unknown is an answer, not a default.
