//! Append-only JSON lines sink: writes, rotation, what a full disk does.
