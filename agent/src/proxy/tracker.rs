//! Live connections, re-decided when the policy changes.
