//! Whether the files that credentials come from give a value.

use std::path::Path;

use crate::credential::file;
use crate::credential::spec::{CredentialSource, CredentialSpec};
use crate::policy::{CredentialName, Diagnostic, Policy, Source, Span};

/// Reads every secret file as the agent will; values are dropped at once. Helpers are not run, and a systemd
/// credential is there only within the agent's own service. `service`: whether it is that service that will read them.
pub(super) fn check(policy: &Policy, sources: &[Source], service: bool) -> Vec<Diagnostic> {
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
            None if service && !file::unseen(path).is_empty() => (
                format!(
                    "credential `{}`: {}{}",
                    credential.name,
                    path.display(),
                    file::unseen(path)
                ),
                "calls that need it will be refused; a drop-in of the unit with ProtectHome=read-only shows it all the same",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_in_a_home_is_wrong_for_the_service_that_sees_none() {
        let text = "[[workload]]\nname = \"w\"\n[credential.token]\nhosts = [\"a.example\"]\nscheme = \"bearer\"\nsource = { exec = [\"/run/user/1/helper\"] }\n";
        let source = Source::new("p.toml", text);
        let policy = Policy::compile(std::slice::from_ref(&source)).unwrap();
        let sources = [source];
        let found = check(&policy, &sources, true);
        assert!(found[0].message.contains("sees no home directories"), "{found:?}");
        assert_eq!(check(&policy, &sources, false), []);
    }
}
