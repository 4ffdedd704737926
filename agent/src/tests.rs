//! What unit tests share: leaving out those that this machine or user can't run, in sight of the test runner.

use std::fs::File;
use std::io::Write as _;

/// Whether the test must be left out, having no root. Said on standard error, and noted in the file that
/// `CALLGATE_SKIP_FILE` names, from which `cargo xtask test` counts.
pub(crate) fn lacks_root() -> bool {
    if nix::unistd::geteuid().is_root() {
        return false;
    }
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    eprintln!("skipped: {test}: needs root");
    if let Some(file) = std::env::var_os("CALLGATE_SKIP_FILE") {
        let mut file = File::options().append(true).create(true).open(file).unwrap();
        file.write_all(format!("{test}: needs root\n").as_bytes())
            .unwrap();
    }
    true
}
