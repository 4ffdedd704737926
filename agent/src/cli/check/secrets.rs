//! Whether the files that credentials come from give a value.

use crate::credential::file;
use crate::credential::spec::{CredentialSource, CredentialSpec};
use crate::policy::{Diagnostic, Policy};

/// Reads every secret file as the agent will; values are dropped at once. Helpers are not run, and a systemd
/// credential is there only within the agent's own service.
pub(super) fn check(policy: &Policy) -> Vec<Diagnostic> {
    let look = |credential: &CredentialSpec| {
        let CredentialSource::File { path } = &credential.source else {
            return None;
        };
        let error = file::read(path).err()?;
        let message = format!("credential `{}` has no value: {error}", credential.name);
        let found = Diagnostic::whole_file(&path.to_string_lossy(), message);
        Some(found.help("calls that need it will be refused; --no-secrets leaves these files out"))
    };
    policy.credentials().filter_map(look).collect()
}
