//! The `callgate` program.

fn main() {}
