//! The same walk as the engine, keeping its trace.
