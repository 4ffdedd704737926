//! Starts, hands over to, drains and replaces the worker.
