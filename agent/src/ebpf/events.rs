//! Kernel refusals from the ring buffer.
