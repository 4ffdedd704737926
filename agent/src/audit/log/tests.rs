//! The log on sinks that fail, under calls that end in every way.
