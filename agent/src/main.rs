//! The `callgate` program.
#![expect(clippy::print_stderr, reason = "before there is a command line to answer")]

use std::process::ExitCode;

fn main() -> ExitCode {
    if cfg!(target_feature = "crt-static")
        && let Err(error) = callgate::linkage::users_from_files()
    {
        eprintln!("callgate: the users of this host can't be looked up: {error}");
        return ExitCode::from(3);
    }
    callgate::cli::main()
}
