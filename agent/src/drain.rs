//! Stopping gently: a signal, a watch, a deadline.
