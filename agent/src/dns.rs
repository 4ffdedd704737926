//! What workloads may ask, and the answers.
