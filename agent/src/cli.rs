//! The command line: one function per subcommand, and the exit codes.

pub mod audit;
pub mod check;
pub mod doctor;
pub mod exec;
pub mod explain;
pub mod reload;
pub mod run;
pub mod status;
