//! One accepted connection: the phases in order.
