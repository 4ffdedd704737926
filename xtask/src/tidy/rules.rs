//! The rules that look at one line, or at the file as a whole.

use super::Finding;
use super::source::{Source, has_word};

/// A file says one thing; past this it says several.
const MAX_LINES: usize = 500;

/// Files that are longer, with the reason. The list may only shrink.
const LONG_FILES: &[(&str, &str)] = &[];

/// Where `unsafe` may stand, each place being a kernel boundary.
const UNSAFE: &[&str] = &[
    "agent-common/src/pod.rs",
    "agent-ebpf/src/",
    "agent/src/audit/inflight.rs",
    "agent/src/ebpf/",
    "agent/src/linkage.rs",
    "agent/src/memory.rs",
    "agent/src/time/kept.rs",
    "tests/probe/",
];

/// Crates that only one part of the agent may name.
const OWNED: &[(&str, &[&str])] = &[
    (
        "aya",
        &[
            "agent/src/ebpf.rs",
            "agent/src/ebpf/",
            "agent-common/src/",
            "agent-ebpf/",
            "agent/build.rs",
        ],
    ),
    ("aya_log", &["agent/src/ebpf.rs", "agent/src/ebpf/"]),
    (
        "rustls",
        &["agent/src/tls.rs", "agent/src/tls/", "tests/clients/main.rs"],
    ),
    ("tokio_rustls", &["agent/src/tls.rs", "agent/src/tls/"]),
];

/// Where a secret's bytes may be taken out.
const EXPOSE: &[&str] = &["agent/src/credential/inject.rs", "agent/src/credential/secret.rs"];

/// What shows where a file was written; split, so that this file passes its own rule.
const MACHINE: &[&str] = &[
    concat!("/ro", "ot/"),
    concat!("/wo", "rk/"),
    concat!("deb.debian", ".org"),
    concat!("static.crates", ".io"),
    concat!("index.crates", ".io"),
    concat!("py", "pi.org"),
    concat!("registry.npm", "js.org"),
    concat!("proxy.go", "lang.org"),
];

/// The rules for every text file.
pub(super) fn for_all(source: &Source) -> Vec<Finding> {
    [machine(source), promises(source)].concat()
}

/// The rules for Rust.
pub(super) fn for_rust(source: &Source) -> Vec<Finding> {
    let rules = [
        module_doc,
        module_file,
        length,
        unsafe_code,
        unwrap,
        owned_crates,
        expose,
        permit,
    ];
    rules.iter().flat_map(|rule| rule(source)).collect()
}

fn module_doc(source: &Source) -> Vec<Finding> {
    let has = source
        .lines
        .first()
        .is_some_and(|line| line.starts_with("//! ") && line.len() > 6);
    let finding = || {
        source.finding(
            1,
            "module-doc",
            "open the file with a `//!` line that says what it owns",
        )
    };
    (!has).then(finding).into_iter().collect()
}

fn module_file(source: &Source) -> Vec<Finding> {
    let old = source.path.ends_with("/mod.rs");
    let finding = || {
        source.finding(
            1,
            "mod-rs",
            "name the file after its module: `foo.rs` beside `foo/`",
        )
    };
    old.then(finding).into_iter().collect()
}

fn length(source: &Source) -> Vec<Finding> {
    let lines = source.lines.len();
    let listed = LONG_FILES.iter().any(|(path, _)| *path == source.path);
    match (lines > MAX_LINES, listed) {
        (true, false) => {
            let fix = format!("{lines} lines; split it by concept (at most {MAX_LINES})");
            vec![source.finding(MAX_LINES + 1, "length", fix)]
        }
        (false, true) => vec![source.finding(1, "length", "short enough now; take it off LONG_FILES")],
        _ => Vec::new(),
    }
}

fn unsafe_code(source: &Source) -> Vec<Finding> {
    let fix = "only the kernel boundary may; use or add a safe function in one of the files that tidy lists";
    let unsafe_here = |code: &str| has_word(&code.replace("#[unsafe(", ""), "unsafe");
    lines_outside(source, UNSAFE, source.all_code(), unsafe_here, "unsafe", fix)
}

fn unwrap(source: &Source) -> Vec<Finding> {
    let fix = "return an error, or `expect` the lint with the invariant that makes it impossible";
    lines_outside(
        source,
        &[],
        source.code(),
        |code| code.contains(".unwrap()"),
        "unwrap",
        fix,
    )
}

fn owned_crates(source: &Source) -> Vec<Finding> {
    if !source.path.starts_with("agent") {
        return Vec::new();
    }
    let check = |(name, owners): &(&str, &'static [&'static str])| {
        let fix = format!("only {} names {name}; give it a function there", owners[0]);
        let named = |code: &str| {
            has_word(code, name) && (code.contains(&format!("{name}::")) || code.contains("use "))
        };
        lines_outside(source, owners, source.code(), named, "owned-crate", &fix)
    };
    OWNED.iter().flat_map(check).collect()
}

fn expose(source: &Source) -> Vec<Finding> {
    let fix = "a secret is only taken out where it is put on a request: agent/src/credential/inject.rs";
    lines_outside(
        source,
        EXPOSE,
        source.code(),
        |code| code.contains(".expose("),
        "expose",
        fix,
    )
}

fn permit(source: &Source) -> Vec<Finding> {
    let fix = "only policy makes a Permit; ask it";
    let makes = |code: &str| {
        has_word(code, "Permit")
            && code.contains("Permit {")
            && !code.contains("impl ")
            && !code.contains("-> ")
    };
    lines_outside(
        source,
        &["agent/src/policy.rs", "agent/src/policy/"],
        source.code(),
        makes,
        "permit",
        fix,
    )
}

fn machine(source: &Source) -> Vec<Finding> {
    let fix = "no paths or hosts of one machine: say it for every machine";
    let named = |line: &String| MACHINE.iter().any(|word| line.contains(word));
    let lines = source.lines.iter().enumerate().filter(|(_, line)| named(line));
    lines
        .map(|(index, _)| source.finding(index + 1, "machine", fix))
        .collect()
}

/// A promise in a comment needs the number of an issue, else nobody keeps it.
fn promises(source: &Source) -> Vec<Finding> {
    let words = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
    let open = |line: &String| {
        let numbered = line
            .split('#')
            .skip(1)
            .any(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        words.iter().any(|word| has_word(line, word)) && !numbered
    };
    let lines = source.lines.iter().enumerate().filter(|(_, line)| open(line));
    lines
        .map(|(index, _)| source.finding(index + 1, "promise", "do it, or name the issue: `#12`"))
        .collect()
}

fn lines_outside(
    source: &Source,
    allowed: &[&str],
    lines: impl Iterator<Item = (usize, String)>,
    breaks: impl Fn(&str) -> bool,
    rule: &'static str,
    fix: &str,
) -> Vec<Finding> {
    if allowed.iter().any(|prefix| source.path.starts_with(prefix)) {
        return Vec::new();
    }
    lines
        .filter(|(_, code)| breaks(code))
        .map(|(line, _)| source.finding(line, rule, fix))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(path: &str, text: &str) -> Vec<(usize, &'static str)> {
        let source = Source::new(path, text);
        let all = [for_all(&source), for_rust(&source)].concat();
        all.into_iter()
            .map(|finding| (finding.line, finding.rule))
            .collect()
    }

    const DOC: &str = "//! What this owns.\n";

    #[test]
    fn a_file_opens_with_what_it_owns() {
        assert_eq!(rules("agent/src/a.rs", "use std::fs;\n"), [(1, "module-doc")]);
        assert_eq!(rules("agent/src/a.rs", "//! x\n"), [(1, "module-doc")]);
        assert!(rules("agent/src/a.rs", DOC).is_empty());
    }

    #[test]
    fn unsafe_only_at_the_kernel_boundary() {
        let text = format!("{DOC}unsafe {{ x() }}\n");
        assert_eq!(rules("agent/src/proxy.rs", &text), [(2, "unsafe")]);
        assert!(rules("agent/src/ebpf/loader.rs", &text).is_empty());
    }

    #[test]
    fn unwrap_only_in_tests() {
        let text = format!("{DOC}a.unwrap();\n#[cfg(test)]\nmod tests {{ b.unwrap(); }}\n");
        assert_eq!(rules("agent/src/a.rs", &text), [(2, "unwrap")]);
    }

    #[test]
    fn each_crate_of_the_boundary_has_one_owner() {
        assert_eq!(
            rules("agent/src/net.rs", &format!("{DOC}use aya::Ebpf;\n")),
            [(2, "owned-crate")]
        );
        assert_eq!(
            rules(
                "agent/src/http.rs",
                &format!("{DOC}fn f(c: rustls::Config) {{}}\n")
            ),
            [(2, "owned-crate")]
        );
        assert!(rules("agent/src/tls/ca.rs", &format!("{DOC}use rustls::Config;\n")).is_empty());
    }

    #[test]
    fn secrets_and_permits_are_made_and_opened_in_one_place() {
        assert_eq!(
            rules("agent/src/audit.rs", &format!("{DOC}s.expose();\n")),
            [(2, "expose")]
        );
        assert_eq!(
            rules("agent/src/proxy.rs", &format!("{DOC}let p = Permit {{ a }};\n")),
            [(2, "permit")]
        );
    }

    #[test]
    fn promises_have_a_number() {
        let word = concat!("TO", "DO");
        assert_eq!(
            rules("agent/src/a.rs", &format!("{DOC}// {word}: later\n")),
            [(2, "promise")]
        );
        assert!(rules("agent/src/a.rs", &format!("{DOC}// {word} #12: later\n")).is_empty());
    }

    #[test]
    fn long_files_are_split() {
        let text = DOC.to_owned() + &"\n".repeat(MAX_LINES);
        assert_eq!(rules("agent/src/a.rs", &text), [(MAX_LINES + 1, "length")]);
    }

    #[test]
    fn nothing_shows_where_it_was_written() {
        let text = format!("{DOC}// see {}x\n", MACHINE[0]);
        assert_eq!(rules("agent/src/a.rs", &text), [(2, "machine")]);
    }

    #[test]
    fn modules_are_named_after_themselves() {
        assert_eq!(rules("agent/src/a/mod.rs", DOC), [(1, "mod-rs")]);
    }
}
