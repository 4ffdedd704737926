//! Helpers that succeed, fail, hang, flood and leave children behind.
