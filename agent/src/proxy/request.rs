//! One request: decide, inject, forward, record.
