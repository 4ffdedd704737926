//! Places that the settings name and that the agent's own service does not let it write to.

use super::enable::own::Unwritable;
use crate::policy::{Diagnostic, Source};

/// At the key's value in the settings, if it is given there.
pub(super) fn diagnose(settings: &Source, found: Unwritable) -> Diagnostic {
    let document = toml_span::parse(&settings.text).ok();
    let value = document
        .as_ref()
        .and_then(|text| text.pointer(&format!("/{}", found.key)));
    let diagnostic = match value {
        Some(value) => Diagnostic::error(settings, value.span.into(), found.what),
        None => Diagnostic::whole_file(&settings.name, found.what),
    };
    diagnostic.help(found.fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_points_at_the_line_that_names_the_place() {
        let source = Source::new("callgate.toml", "threads = 1\n[audit]\nfile = \"/srv/a\"\n");
        let found = |key| Unwritable {
            key,
            what: "closed".into(),
            fix: "open it".into(),
        };
        let diagnostic = diagnose(&source, found("audit/file"));
        assert_eq!(
            (diagnostic.line, diagnostic.help.as_deref()),
            (3, Some("open it"))
        );
        assert_eq!(diagnose(&source, found("bpffs_dir")).message, "closed");
    }
}
