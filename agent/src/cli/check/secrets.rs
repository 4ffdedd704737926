//! Whether the files that credentials come from give a value.

use crate::credential::file;
use crate::credential::spec::{CredentialSource, CredentialSpec};
use crate::policy::{CredentialName, Diagnostic, Policy, Source, Span};

/// Reads every secret file as the agent will; values are dropped at once. Helpers are not run, and a systemd
/// credential is there only within the agent's own service.
pub(super) fn check(policy: &Policy, sources: &[Source]) -> Vec<Diagnostic> {
    let look = |credential: &CredentialSpec| {
        let CredentialSource::File { path } = &credential.source else {
            return None;
        };
        let error = file::read(path).err()?;
        let message = format!("credential `{}` has no value: {error}", credential.name);
        let found = match place(sources, &credential.name) {
            Some((source, span)) => Diagnostic::error(source, span, message),
            None => Diagnostic::whole_file(&path.to_string_lossy(), message),
        };
        Some(found.help("calls that need it will be refused; --no-secrets leaves these files out"))
    };
    policy.credentials().filter_map(look).collect()
}

/// Where the policy names the file.
fn place<'a>(sources: &'a [Source], name: &CredentialName) -> Option<(&'a Source, Span)> {
    sources.iter().find_map(|source| {
        let document = toml_span::parse(&source.text).ok()?;
        let value = document.pointer(&format!("/credential/{name}/source/file"))?;
        Some((source, value.span.into()))
    })
}
