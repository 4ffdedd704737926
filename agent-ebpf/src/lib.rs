//! Empty on purpose: the programs are the binary `capture`, which `agent/build.rs` compiles for the kernel.
#![no_std]
