//! Source: `$CREDENTIALS_DIRECTORY`.
//!
//! systemd makes the directory for the agent's own service and keeps it in memory; the files in it are checked
//! and read as any other ([`super::file`]).

use std::path::{Path, PathBuf};

/// Why there is no such credential.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// Not started by systemd, or without credentials.
    #[error("$CREDENTIALS_DIRECTORY is not set: give callgate.service a LoadCredential= (or ...Encrypted=) for `{name}`")]
    NoDirectory {
        /// The credential that was asked for.
        name: String,
    },
    /// The name would lead elsewhere.
    #[error("`{name}` can't name a systemd credential: it is one file name, without `/`")]
    Name {
        /// The name.
        name: String,
    },
}

/// Where the credential lies.
///
/// # Errors
/// If systemd gave no directory, or the name is no file name.
pub fn path(name: &str) -> Result<PathBuf, SystemdError> {
    let directory = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    within(directory.as_deref(), name)
}

fn within(directory: Option<&Path>, name: &str) -> Result<PathBuf, SystemdError> {
    if name.is_empty() || name.contains(['/', '\0']) || name == "." || name == ".." {
        return Err(SystemdError::Name { name: name.to_owned() });
    }
    let directory = directory.filter(|directory| directory.is_absolute());
    let directory = directory.ok_or_else(|| SystemdError::NoDirectory { name: name.to_owned() })?;
    Ok(directory.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_never_leads_out_of_the_directory() {
        let directory = Some(Path::new("/run/credentials/callgate.service"));
        assert_eq!(
            within(directory, "stripe").unwrap(),
            Path::new("/run/credentials/callgate.service/stripe")
        );
        for name in ["", ".", "..", "../shadow", "/etc/shadow", "a/b", "a\0"] {
            assert!(matches!(within(directory, name), Err(SystemdError::Name { .. })), "{name:?}");
        }
        for directory in [None, Some(Path::new("")), Some(Path::new("relative"))] {
            assert!(matches!(within(directory, "a"), Err(SystemdError::NoDirectory { .. })));
        }
    }
}
