//! The table of calls under way, in a shared mapping that outlives the process.
