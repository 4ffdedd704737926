//! Lines that tests leave for whoever runs them, in files that variables name: `cargo xtask test` reads them when a suite
//! has ended.

use std::fs::File;
use std::io::Write as _;

use anyhow::{Context, Result};

/// The file for tests that skipped themselves.
pub const SKIPS_VARIABLE: &str = "CALLGATE_SKIP_FILE";
/// The file for tests that booted a Debian.
pub const BOOTS_VARIABLE: &str = "CALLGATE_BOOT_FILE";

/// The running test's name, which its runner has given to the thread.
#[must_use]
pub fn test() -> String {
    std::thread::current().name().unwrap_or("?").to_owned()
}

/// Leaves a line; where the variable is not set, nobody asked.
///
/// # Errors
/// If the file can't be written.
pub fn leave(variable: &str, line: &str) -> Result<()> {
    let Some(file) = std::env::var_os(variable) else {
        return Ok(());
    };
    let shown = file.display().to_string();
    let file = File::options().append(true).create(true).open(&file);
    let mut file = file.with_context(|| format!("can't open {shown} ({variable})"))?;
    // One write, so that lines of tests that run side by side don't mix.
    file.write_all(format!("{line}\n").as_bytes())
        .with_context(|| format!("can't write {shown} ({variable})"))
}
