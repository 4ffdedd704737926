//! Whether the files that credentials come from give a value.

use std::path::Path;

use crate::credential::file;
use crate::credential::spec::{CredentialSource, CredentialSpec};
use crate::policy::{CredentialName, Diagnostic, Policy, Source, Span};

/// Reads every secret file as the agent will; values are dropped at once. Helpers are not run, and a systemd
/// credential is there only within the agent's own service.
pub(super) fn check(policy: &Policy, sources: &[Source]) -> Vec<Diagnostic> {
    let look = |credential: &CredentialSpec| {
        let (path, error) = match &credential.source {
            CredentialSource::File { path } => (path.as_path(), file::read(path).err()),
            CredentialSource::Exec { command, .. } => (Path::new(command.first()?), None),
            CredentialSource::Systemd { .. } => return None,
        };
        let (message, help) = match error {
            Some(error) => (
                format!("credential `{}` has no value: {error}", credential.name),
                "calls that need it will be refused; --no-secrets leaves these files out",
            ),
            // There for whoever asks here, but not for the service.
            None if !file::unseen(path).is_empty() => (
                format!(
                    "credential `{}`: {}{}",
                    credential.name,
                    path.display(),
                    file::unseen(path)
                ),
                "an agent that runs as that service would have no value, and refuse calls that need it",
            ),
            None => return None,
        };
        let found = match place(sources, &credential.name) {
            Some((source, span)) => Diagnostic::error(source, span, message),
            None => Diagnostic::whole_file(&path.to_string_lossy(), message),
        };
        Some(found.help(help))
    };
    policy.credentials().filter_map(look).collect()
}

/// Where the policy names its source.
fn place<'a>(sources: &'a [Source], name: &CredentialName) -> Option<(&'a Source, Span)> {
    sources.iter().find_map(|source| {
        let document = toml_span::parse(&source.text).ok()?;
        let named = |kind: &str| document.pointer(&format!("/credential/{name}/source/{kind}"));
        let value = named("file").or_else(|| named("exec"))?;
        Some((source, value.span.into()))
    })
}
