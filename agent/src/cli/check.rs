//! `callgate check`: every error in config and policy; touches nothing.

mod places;
mod secrets;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};

use super::enable;
use crate::config::{Config, DEFAULT_PATH};
use crate::policy::{Diagnostic, Policy, Severity, Source, Span, store};

/// What `callgate check` is told.
#[derive(Clone, Debug, clap::Args)]
pub struct CheckArgs {
    /// The agent's settings
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    pub config: PathBuf,
    /// The policy's directory, instead of the one that the settings name
    #[arg(long, value_name = "DIR")]
    pub policy_dir: Option<PathBuf>,
    /// Leave out the files that credentials come from; without root they always are, as only the agent may read them
    #[arg(long)]
    pub no_secrets: bool,
    /// One JSON document instead of text
    #[arg(long)]
    pub json: bool,
}

/// Settings and policy as far as they could be read, and all findings on them.
#[derive(Debug)]
pub struct Checked {
    /// The settings, if they are good.
    pub config: Option<Config>,
    /// The policy, if it is good.
    pub policy: Option<Policy>,
    /// Errors and warnings of all files.
    pub found: Vec<Diagnostic>,
    /// The texts that the findings point into.
    pub sources: Vec<Source>,
}

/// Reads settings and policy. The policy is read also if the settings are wrong, from where they say if that much
/// can be read.
#[must_use]
pub fn check(args: &CheckArgs) -> Checked {
    let mut checked = Checked {
        config: None,
        policy: None,
        found: Vec::new(),
        sources: Vec::new(),
    };
    let by_settings = match Config::load(&args.config) {
        Ok((config, source)) => {
            checked.sources.push(source);
            let policy_dir = config.policy_dir.clone();
            checked.config = Some(config);
            policy_dir
        }
        Err(faulty) => {
            checked.found = faulty.found;
            checked.sources.push(faulty.source);
            faulty.readable.policy_dir
        }
    };
    let loaded = store::load_dir(args.policy_dir.as_ref().unwrap_or(&by_settings));
    checked.sources.extend(loaded.sources);
    match loaded.policy {
        Ok(policy) => {
            checked.found.extend_from_slice(policy.warnings());
            checked.policy = Some(policy);
        }
        Err(found) => checked.found.extend(found),
    }
    checked
}

/// Prints all findings. Exit code 0 if there is no error, else 2.
///
/// # Errors
/// If `out` can't be written to.
pub fn run(args: &CheckArgs, out: &mut dyn Write, styled: bool) -> io::Result<ExitCode> {
    let mut checked = check(args);
    if let Some(policy) = checked.policy.as_ref()
        && !args.no_secrets
        && nix::unistd::geteuid().is_root()
    {
        let service = enable::own::sees_no_homes(&args.config);
        let found = secrets::check(policy, &checked.sources, service);
        checked.found.extend(found);
    }
    if let (Some(config), Some(source)) = (&checked.config, checked.sources.first()) {
        let unwritable = enable::own::unwritable(config).into_iter();
        let found = unwritable.map(|one| places::diagnose(source, one));
        checked.found.extend(found);
    }
    let errors = count(&checked.found, Severity::Error);
    if args.json {
        let document = serde_json::json!({ "ok": errors == 0, "findings": checked.found });
        writeln!(out, "{document:#}")?;
    } else {
        write!(out, "{}", render(&checked.found, &checked.sources, styled))?;
        writeln!(out, "{}", summary(&checked, errors))?;
    }
    Ok(if errors == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(2)
    })
}

fn count(found: &[Diagnostic], severity: Severity) -> usize {
    found
        .iter()
        .filter(|diagnostic| diagnostic.severity == severity)
        .count()
}

fn summary(checked: &Checked, errors: usize) -> String {
    let warnings = match count(&checked.found, Severity::Warning) {
        0 => String::new(),
        1 => ", 1 warning".to_owned(),
        many => format!(", {many} warnings"),
    };
    let Some(policy) = checked.policy.as_ref().filter(|_| errors == 0) else {
        let plural = if errors == 1 { "" } else { "s" };
        return format!("{errors} error{plural}{warnings}");
    };
    let rules: usize = policy
        .workloads()
        .map(|workload| workload.rules().len() + workload.direct().len())
        .sum();
    if policy.workloads().len() == 0 {
        return format!("good, but nothing is managed: no policy file defines a workload{warnings}");
    }
    let (workloads, credentials) = (policy.workloads().len(), policy.credentials().len());
    format!("good: {workloads} workloads, {rules} rules, {credentials} credentials{warnings}")
}

/// Draws findings with the lines that they point to.
#[must_use]
pub fn render(found: &[Diagnostic], sources: &[Source], styled: bool) -> String {
    let renderer = if styled {
        Renderer::styled()
    } else {
        Renderer::plain()
    };
    let renderer = renderer.decor_style(if styled {
        DecorStyle::Unicode
    } else {
        DecorStyle::Ascii
    });
    found
        .iter()
        .map(|diagnostic| format!("{}\n\n", renderer.render(&report(diagnostic, sources))))
        .collect()
}

fn report<'a>(diagnostic: &'a Diagnostic, sources: &'a [Source]) -> Vec<Group<'a>> {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let mut group = level
        .primary_title(visible(&diagnostic.message))
        .elements(None::<Origin<'_>>);
    group = match source_of(sources, &diagnostic.file) {
        Some(source) => {
            let span = drawable(&source.text, diagnostic.span);
            let mut primary = AnnotationKind::Primary.span(span);
            if let Some(label) = &diagnostic.label {
                primary = primary.label(visible(label));
            }
            let same_file = diagnostic
                .related
                .iter()
                .filter(|related| related.file == diagnostic.file);
            let context = same_file.map(|related| {
                let span = drawable(&source.text, related.span);
                AnnotationKind::Context.span(span).label(visible(&related.label))
            });
            let snippet = Snippet::source(&*source.text).path(&*diagnostic.file);
            group.element(snippet.annotation(primary).annotations(context))
        }
        None => {
            let origin = Origin::path(&*diagnostic.file);
            let known = diagnostic.line > 1 || diagnostic.column > 1;
            group.element(if known {
                origin.line(diagnostic.line).char_column(diagnostic.column)
            } else {
                origin
            })
        }
    };
    for related in diagnostic
        .related
        .iter()
        .filter(|related| related.file != diagnostic.file)
    {
        if let Some(source) = source_of(sources, &related.file) {
            let span = drawable(&source.text, related.span);
            let place = AnnotationKind::Context.span(span).label(visible(&related.label));
            group = group.element(
                Snippet::source(&*source.text)
                    .path(&*related.file)
                    .annotation(place),
            );
        }
    }
    if let Some(help) = &diagnostic.help {
        group = group.element(Level::HELP.message(visible(help)));
    }
    vec![group]
}

/// A file's text may hold escape sequences; messages quote it, and terminals obey it.
fn visible(text: &str) -> String {
    let escape = |c: char| {
        if c.is_control() {
            c.escape_default().to_string()
        } else {
            c.to_string()
        }
    };
    text.chars().map(escape).collect()
}

fn source_of<'a>(sources: &'a [Source], name: &str) -> Option<&'a Source> {
    sources
        .iter()
        .find(|source| *source.name == *name && !source.text.is_empty())
}

/// On character borders and within the text, whatever the span says.
fn drawable(text: &str, span: Span) -> std::ops::Range<usize> {
    let start = text.floor_char_boundary(span.start);
    let end = text.ceil_char_boundary(span.end.max(start));
    start..end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_drawn_with_their_lines() {
        let text = "[[workload]]\nname = \"w\"\nunts = [\"a.service\"]\n";
        let source = Source::new("policy.d/a.toml", text);
        let found = Policy::compile(std::slice::from_ref(&source)).unwrap_err();
        let drawn = render(&found, &[source], false);
        let expected = "error: unknown key `unts` in a workload\n \
                        --> policy.d/a.toml:3:1\n  |\n3 | unts = [\"a.service\"]\n  | ^^^^\n  |\n  = help: did you mean `units`?\n\n";
        assert_eq!(drawn, expected);
    }

    #[test]
    fn a_bad_policy_exits_with_2_and_a_good_one_with_0() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("callgate.toml"), "").unwrap();
        let mut args = CheckArgs {
            config: dir.path().join("callgate.toml"),
            policy_dir: Some(dir.path().join("policy.d")),
            no_secrets: false,
            json: false,
        };
        let mut printed = Vec::new();
        assert_eq!(run(&args, &mut printed, false).unwrap(), ExitCode::from(2));
        std::fs::create_dir(dir.path().join("policy.d")).unwrap();
        std::fs::write(dir.path().join("policy.d/a.toml"), "[[workload]]\nname = 'w'").unwrap();
        assert_eq!(run(&args, &mut printed, false).unwrap(), ExitCode::SUCCESS);
        let printed = String::from_utf8(printed).unwrap();
        assert!(
            printed.ends_with("good: 1 workloads, 0 rules, 0 credentials\n"),
            "{printed}"
        );
        args.json = true;
        std::fs::write(dir.path().join("policy.d/b.toml"), "x = \x1b").unwrap();
        let mut printed = Vec::new();
        assert_eq!(run(&args, &mut printed, false).unwrap(), ExitCode::from(2));
        let document: serde_json::Value = serde_json::from_slice(&printed).unwrap();
        assert_eq!(document["ok"], false);
        assert_eq!(document["findings"][0]["line"], 1);
    }
}
