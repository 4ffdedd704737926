//! What this kernel offers, probed one by one.
