//! `callgate doctor`: what this host lacks, and the fix.
